"""What cannot be served is refused as INVALID_ARGUMENT, naming the parameter and what is allowed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from callers import change_of, generated, grpc, http_generate, tensor
from tritonclient.utils import InferenceServerException

from local_server import LocalServer
from tiny_sd_client.parameters import MAX_PROMPT_CHARACTERS, MAX_SEED


def refusal(url: str, inputs: list[Any], model: str = "tiny_sd", **options: Any) -> str:
    with triton.InferenceServerClient(url) as client, pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, inputs, client_timeout=60, **options)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT", caught.value
    message = str(caught.value.message())
    assert "Traceback" not in message
    assert len(message) < 1000
    return message


PROMPT = tensor(triton, "prompt", "a red circle")
OUT_OF_RANGE = [
    ("prompt", "", f"with a visible character, of at most {MAX_PROMPT_CHARACTERS} characters"),
    ("prompt", " \n ", f"with a visible character, of at most {MAX_PROMPT_CHARACTERS} characters"),
    ("prompt", "red " * 20_000, f"with a visible character, of at most {MAX_PROMPT_CHARACTERS} characters"),
    ("prompt", "🎨" * MAX_PROMPT_CHARACTERS, "tokens long; at most 1200"),
    ("prompt", b"\xff\xfe red", "UTF-8 text"),
    ("prompt", "red\x00circle", "without control characters"),
    ("negative_prompt", "x" * (MAX_PROMPT_CHARACTERS + 1), f"of at most {MAX_PROMPT_CHARACTERS} characters"),
    ("negative_prompt", b"\xc3\x28", "UTF-8 text"),
    ("scheduler", "", "DDIM, DPM Multi"),
    ("scheduler", "__import__('os')", "DDIM, DPM Multi"),
    ("scheduler", b"\x80", "UTF-8 text"),
    ("num_inference_steps", 19, "an integer from 20 to 100"),
    ("num_inference_steps", 101, "an integer from 20 to 100"),
    ("num_inference_steps", -(2**31), "an integer from 20 to 100"),
    ("guidance_scale", 0.05, "a number from 0.1 to 25"),
    ("guidance_scale", 25.5, "a number from 0.1 to 25"),
    ("guidance_scale", float("nan"), "a number from 0.1 to 25"),
    ("guidance_scale", float("inf"), "a number from 0.1 to 25"),
    ("samples", 0, "an integer from 1 to 4"),
    ("samples", 5, "an integer from 1 to 4"),
    ("seed", -2, f"an integer from -1 to {MAX_SEED}"),
    ("seed", MAX_SEED + 1, f"an integer from -1 to {MAX_SEED}"),
    ("img_width", 0, "512, 768, 1024"),
    ("img_width", 513, "512, 768, 1024"),
    ("img_height", -512, "512, 768, 1024"),
    ("img_height", 2**31 - 1, "512, 768, 1024"),
    ("image_format", "gif", "jpeg, png, webp"),
    ("image_format", "", "jpeg, png, webp"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(name: str, value: object, allowed: str, server: LocalServer) -> None:
    inputs = [tensor(triton, name, value)] + ([PROMPT] if name != "prompt" else [])
    message = refusal(server.grpc_url, inputs)
    assert f"{name}: " in message
    assert allowed in message


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [("samples", 1.0, "FP32"), ("prompt", 7, "INT32"), ("seed", 1, "INT32"), ("base64", "true", "BYTES")],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, dtype: str, server: LocalServer) -> None:
    inputs = [tensor(triton, name, value, dtype)] + ([PROMPT] if name != "prompt" else [])
    assert name in refusal(server.grpc_url, inputs)


def test_an_unknown_input_is_refused(server: LocalServer) -> None:
    assert "strength" in refusal(server.grpc_url, [PROMPT, tensor(triton, "strength", 1.0, "FP32")])


def test_an_unknown_field_of_generate_is_refused(server: LocalServer) -> None:
    response = http_generate(server.http_url, prompt="a red circle", num_steps=30)
    assert response.status_code == 400
    assert "num_steps: unknown parameter" in response.json()["error"]
    assert "num_inference_steps" in response.json()["error"]


@pytest.mark.parametrize(
    "field", [{"samples": "many"}, {"guidance_scale": None}, {"seed": 1.5}, {"prompt": 7}, {"base64": "yes"}]
)
def test_a_field_of_another_type_is_refused_by_generate(field: dict[str, object], server: LocalServer) -> None:
    # Triton's HTTP front end reads the JSON before any model sees it, and answers 500 where it cannot.
    response = http_generate(server.http_url, **{"prompt": "a red circle", **field})
    assert response.status_code == 500
    assert "Unable to parse" in response.json()["error"]
    assert generated(http_generate(server.http_url, prompt="a red circle")).images


@pytest.mark.parametrize("field", ["samples", "prompt", "seed"])
def test_several_values_in_one_field_are_refused_by_generate(field: str, server: LocalServer) -> None:
    several = {"samples": [1, 2], "prompt": ["a", "b"], "seed": [1, 2]}[field]
    response = http_generate(server.http_url, **{"prompt": "a red circle", field: several})
    assert response.status_code == 400
    assert "batch" in response.json()["error"]


def test_a_missing_prompt_is_refused(server: LocalServer) -> None:
    assert "prompt: is required" in refusal(server.grpc_url, [tensor(triton, "seed", 1)])
    response = http_generate(server.http_url, seed=1)
    assert response.status_code == 400
    assert "prompt: is required" in response.json()["error"]
    assert http_generate(server.http_url).status_code == 400


def test_a_body_that_is_not_json_is_refused(server: LocalServer) -> None:
    response = requests.post(f"http://{server.http_url}/v2/models/tiny_sd/generate", data=b"{prompt", timeout=60)
    assert response.status_code == 500, "Triton's own HTTP front end, as for values of another type"
    assert "JSON" in response.json()["error"]


def test_a_client_batch_is_refused(server: LocalServer) -> None:
    assert "batch" in refusal(server.grpc_url, [tensor(triton, "prompt", "a red circle", shape=(2, 1))])


def test_two_prompts_in_one_request_are_refused(server: LocalServer) -> None:
    assert "prompt" in refusal(server.grpc_url, [tensor(triton, "prompt", "a red circle", shape=(1, 2))])


@pytest.mark.parametrize("sequence_id", [7, "mine"])
def test_a_foreign_sequence_id_is_refused(sequence_id: int | str, server: LocalServer) -> None:
    options = {"sequence_id": sequence_id, "sequence_start": True, "sequence_end": True}
    assert "sequence_id: not allowed" in refusal(server.grpc_url, [PROMPT], **options)
    body = {"prompt": "a red circle", "parameters": {"sequence_id": sequence_id, "sequence_start": True}}
    response = http_generate(server.http_url, **body)
    assert response.status_code == 400
    assert "sequence_id: not allowed" in response.json()["error"]


def test_a_bad_timeout_is_refused(server: LocalServer) -> None:
    response = http_generate(server.http_url, prompt="a red circle", timeout="soon")
    assert response.status_code == 400
    assert "timeout: " in response.json()["error"]


def test_good_requests_succeed_among_bad_ones_in_the_same_batch(server: LocalServer) -> None:
    good = {"prompt": "a red circle", "seed": 11}
    alone = grpc(server.grpc_url, **good)

    def bad(_: int) -> str:
        return refusal(server.grpc_url, [PROMPT, tensor(triton, "samples", 99)])

    def fine(_: int) -> object:
        return grpc(server.grpc_url, **good)

    with change_of(server.metrics_url) as change, ThreadPoolExecutor(24) as pool:
        refused = [pool.submit(bad, i) for i in range(40)]
        served = [pool.submit(fine, i) for i in range(3)]
        refused += [pool.submit(bad, i) for i in range(40)]
        assert all("samples: got 99" in each.result() for each in refused)
        assert all(each.result() == alone for each in served)
    assert change["nv_inference_exec_count_total:tokenizer"] < 83, "the tokenizer never saw two requests at once"


def test_values_that_are_nobodys_business_are_not_echoed(server: LocalServer) -> None:
    secret = "my secret idea " * 400
    assert "secret" not in refusal(server.grpc_url, [tensor(triton, "prompt", secret)])


def test_the_inner_stages_refuse_nonsense_as_well(server: LocalServer) -> None:
    def unet_inputs(**changed: Any) -> list[Any]:
        text = np.zeros((1, 77, 48), np.float32)
        arrays = {
            "prompt_embeds": (text, "FP32"),
            "negative_embeds": (text, "FP32"),
            "scheduler": (np.array([[b"UniPC"]], np.object_), "BYTES"),
            "num_inference_steps": (np.array([[20]], np.int32), "INT32"),
            "guidance_scale": (np.array([[7.5]], np.float32), "FP32"),
            "img_width": (np.array([[512]], np.int32), "INT32"),
            "img_height": (np.array([[512]], np.int32), "INT32"),
            "seeds": (np.array([[1]], np.int64), "INT64"),
            "deadline": (np.array([[0.0]]), "FP64"),
            "job_id": (np.array([[b""]], np.object_), "BYTES"),
            "preview_every": (np.array([[0]], np.int32), "INT32"),
            **changed,
        }
        inputs = []
        for name, (array, dtype) in arrays.items():
            inputs.append(triton.InferInput(name, array.shape, dtype))
            inputs[-1].set_data_from_numpy(array)
        return inputs

    nonsense = {
        "scheduler": (np.array([[b"nope"]], np.object_), "BYTES"),
        "num_inference_steps": (np.array([[0]], np.int32), "INT32"),
        "img_width": (np.array([[100]], np.int32), "INT32"),
        "prompt_embeds": (np.zeros((1, 77, 3), np.float32), "FP32"),
        "negative_embeds": (np.zeros((1, 154, 48), np.float32), "FP32"),
    }
    for name, value in nonsense.items():
        message = refusal(server.grpc_url, unet_inputs(**{name: value}), model="unet")
        assert name in message or name == "prompt_embeds"
    assert generated(http_generate(server.http_url, prompt="still alive")).images


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "systemsharedmemory/region/x/register"),
        ("POST", "repository/index"),
        ("POST", "repository/models/unet/unload"),
        ("POST", "logging"),
        ("GET", "trace/setting"),
    ],
)
def test_what_is_for_operators_asks_for_their_key(method: str, path: str, server: LocalServer) -> None:
    answer = requests.request(method, f"http://{server.http_url}/v2/{path}", json={}, timeout=60)
    assert answer.status_code == 403
    assert "admin-key" in answer.text


def test_what_is_for_operators_asks_for_their_key_by_grpc_as_well(server: LocalServer) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        for call in (client.get_model_repository_index, client.get_log_settings, client.get_trace_settings):
            with pytest.raises(InferenceServerException, match="admin-key"):
                call()
        with pytest.raises(InferenceServerException, match="admin-key"):
            client.register_system_shared_memory("x", "/x", 8)
