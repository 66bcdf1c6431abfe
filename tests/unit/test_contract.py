"""The model repository's configurations agree with the documented parameters and with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from tiny_sd_client.parameters import ImageFormat, Parameters, Scheduler

REPOSITORY = Path(__file__).parents[2] / "model_repository"
STAGES = ["tokenizer", "text_encoder", "unet", "vae_decoder"]
NETWORKS = ["text_encoder", "unet", "vae_decoder"]
"""The stages that compute; all other models only check, count and hand on."""
TYPES = {
    str: "TYPE_STRING",
    Scheduler: "TYPE_STRING",
    ImageFormat: "TYPE_STRING",
    int: "TYPE_INT32",
    float: "TYPE_FP32",
    bool: "TYPE_BOOL",
}

Shape = tuple[str, tuple[int, ...]]


def read(path: Path) -> ModelConfig:
    """A configuration as Triton reads it: an unknown field or a repeated one is an error."""
    return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())


CONFIGS = {folder.name: read(folder / "config.pbtxt") for folder in sorted(REPOSITORY.iterdir()) if folder.is_dir()}
ALTERNATIVES = sorted(REPOSITORY.glob("*/configs/*.pbtxt"))
ENSEMBLE = CONFIGS["tiny_sd"]
STREAM = CONFIGS["tiny_sd_stream"]
BOARD = CONFIGS["jobs"]


def tensors(declared: Iterable[model_config_pb2.ModelInput | model_config_pb2.ModelOutput]) -> dict[str, Shape]:
    """Type and shape by name."""
    return {tensor.name: (model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in declared}


def test_every_model_of_the_design_is_there() -> None:
    assert set(CONFIGS) == {"tiny_sd", *STAGES, "tiny_sd_stream", "jobs"}


@pytest.mark.parametrize("model", CONFIGS)
def test_a_model_is_called_what_its_folder_is_called(model: str) -> None:
    assert CONFIGS[model].name == model
    assert (REPOSITORY / model / "1").is_dir()


@pytest.mark.parametrize("model", CONFIGS)
def test_a_model_declares_each_tensor_once(model: str) -> None:
    config = CONFIGS[model]
    for declared in (config.input, config.output):
        assert Counter(tensor.name for tensor in declared).most_common(1)[0][1] == 1


@pytest.mark.parametrize("model", ["tiny_sd", "tokenizer"])
def test_the_inputs_are_the_documented_parameters(model: str) -> None:
    documented = {}
    for name, field in Parameters.model_fields.items():
        assert field.annotation is not None
        # Seeds go beyond 32 bits; nothing else does.
        documented[name] = ("TYPE_INT64" if name == "seed" else TYPES[field.annotation], (1,))
    assert tensors(CONFIGS[model].input) == documented


@pytest.mark.parametrize("model", ["tiny_sd", "tokenizer", "tiny_sd_stream"])
def test_what_is_missing_is_left_for_the_tokenizer_to_say(model: str) -> None:
    """Also the prompt, the one parameter without a default: Triton itself would answer with a "deadlock"."""
    assert [name for name, field in Parameters.model_fields.items() if field.is_required()] == ["prompt"]
    assert [tensor.name for tensor in CONFIGS[model].input if not tensor.optional] == []


@pytest.mark.parametrize("model", [stage for stage in STAGES if stage != "tokenizer"])
def test_no_later_stage_has_an_optional_input(model: str) -> None:
    assert not [tensor.name for tensor in CONFIGS[model].input if tensor.optional]


def test_a_generation_answers_with_images_seeds_parameters_and_its_id() -> None:
    assert tensors(ENSEMBLE.output) == {
        "image": ("TYPE_STRING", (-1,)),
        "seeds": ("TYPE_INT64", (-1,)),
        "parameters": ("TYPE_STRING", (1,)),
        "job_id": ("TYPE_STRING", (1,)),
    }


def test_a_stream_takes_what_a_generation_takes_and_how_often_to_show_it() -> None:
    assert tensors(STREAM.input) == {**tensors(ENSEMBLE.input), "preview_every": ("TYPE_INT32", (1,))}
    assert STREAM.model_transaction_policy.decoupled


def test_a_stream_ends_with_what_a_generation_answers() -> None:
    assert tensors(ENSEMBLE.output).items() <= tensors(STREAM.output).items()


def test_progress_looks_the_same_on_a_stream_and_on_the_board() -> None:
    progress = {
        "job_id": "TYPE_STRING",
        "stage": "TYPE_STRING",
        "step": "TYPE_INT32",
        "steps": "TYPE_INT32",
        "seconds": "TYPE_FP64",
        "seconds_left": "TYPE_FP64",
    }
    pictures = {"preview": ("TYPE_STRING", (-1,)), "image": ("TYPE_STRING", (-1,)), "seeds": ("TYPE_INT64", (-1,))}
    own_stream = {name: (kind, (1,)) for name, kind in progress.items()}
    assert tensors(STREAM.output) == {**own_stream, **pictures, "parameters": ("TYPE_STRING", (1,))}
    own_board = {name: (kind, (-1,)) for name, kind in progress.items()}
    assert tensors(BOARD.output) == {**own_board, "max_in_flight": ("TYPE_INT32", (1,))}


def test_the_board_is_asked_for_something_and_for_one_job_by_its_id() -> None:
    assert tensors(BOARD.input) == {"action": ("TYPE_STRING", (1,)), "job_id": ("TYPE_STRING", (1,))}
    # Triton refuses a request without any input, so one must be there always.
    assert {tensor.name: tensor.optional for tensor in BOARD.input} == {"action": False, "job_id": True}


def test_a_generation_is_a_batch_of_its_own() -> None:
    assert ENSEMBLE.max_batch_size == STREAM.max_batch_size == 1
    for model in STAGES:
        assert CONFIGS[model].max_batch_size > 1, f"{model} could never batch"


def test_the_ensemble_is_the_stages_in_order() -> None:
    steps = [step.model_name for step in ENSEMBLE.ensemble_scheduling.step]
    assert steps == STAGES
    assert {step.model_version for step in ENSEMBLE.ensemble_scheduling.step} == {-1}


def test_every_step_maps_exactly_the_tensors_that_its_model_declares() -> None:
    for step in ENSEMBLE.ensemble_scheduling.step:
        member = CONFIGS[step.model_name]
        assert set(step.input_map) == set(tensors(member.input)), step.model_name
        assert set(step.output_map) <= set(tensors(member.output)), step.model_name


def test_no_stage_has_an_output_that_nobody_takes() -> None:
    for model in STAGES:
        taken: set[str] = set()
        for step in ENSEMBLE.ensemble_scheduling.step:
            if step.model_name == model:
                taken |= set(step.output_map)
        assert taken == set(tensors(CONFIGS[model].output)), model


def test_every_tensor_of_the_ensemble_comes_from_one_place_before_it_is_read() -> None:
    made = Counter(tensor.name for tensor in ENSEMBLE.input)
    for step in ENSEMBLE.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= set(made), f"{step.model_name} reads what no earlier step makes"
        made.update(step.output_map.values())
    repeated = [name for name, times in made.items() if times > 1]
    assert not repeated
    assert set(tensors(ENSEMBLE.output)) <= set(made)


def test_no_two_steps_of_a_request_run_side_by_side() -> None:
    """Triton 2.51 dies if the caller leaves then, and if one of them fails it never ends the request."""
    steps = ENSEMBLE.ensemble_scheduling.step
    for before, step in pairwise(steps):
        assert set(before.output_map.values()) & set(step.input_map.values()), f"{step.model_name} does not wait"


def test_tensors_keep_type_and_shape_on_their_way() -> None:
    flowing = tensors(ENSEMBLE.input)
    for step in ENSEMBLE.ensemble_scheduling.step:
        outputs = tensors(CONFIGS[step.model_name].output)
        flowing.update({flow: outputs[own] for own, flow in step.output_map.items()})
    for step in ENSEMBLE.ensemble_scheduling.step:
        inputs = tensors(CONFIGS[step.model_name].input)
        assert {own: flowing[flow] for own, flow in step.input_map.items()} == inputs, step.model_name
    outputs = tensors(ENSEMBLE.output)
    assert {name: flowing[name] for name in outputs} == outputs


@pytest.mark.parametrize("model", STAGES)
def test_tensors_of_variable_shape_may_share_a_batch(model: str) -> None:
    config = CONFIGS[model]
    ragged = {tensor.name for tensor in config.input if tensor.allow_ragged_batch}
    assert ragged == {tensor.name for tensor in config.input if -1 in tensor.dims}


@pytest.mark.parametrize("model", ["tokenizer", "text_encoder", "vae_decoder"])
def test_the_stages_around_the_denoiser_batch_requests_as_they_come(model: str) -> None:
    assert CONFIGS[model].WhichOneof("scheduling_choice") == "dynamic_batching"


def test_the_denoiser_is_called_with_all_requests_in_flight_each_time() -> None:
    config = CONFIGS["unet"]
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.sequence_batching.iterative_sequence
    assert config.sequence_batching.WhichOneof("strategy_choice") == "oldest"
    assert config.sequence_batching.oldest.max_candidate_sequences == config.max_batch_size


@pytest.mark.parametrize("model", [model for model in CONFIGS if model != "tiny_sd"])
def test_a_model_runs_wherever_triton_finds_a_device_if_it_has_use_for_one(model: str) -> None:
    """Of all others there is one instance for the whole server, however many devices it has."""
    config = CONFIGS[model]
    kind = ModelInstanceGroup.KIND_AUTO if model in NETWORKS else ModelInstanceGroup.KIND_CPU
    assert config.backend == "python"
    assert [(group.kind, group.count) for group in config.instance_group] == [(kind, 0)]


def test_every_stage_that_works_on_a_job_knows_which_it_is() -> None:
    for model in ("text_encoder", "unet", "vae_decoder"):
        assert tensors(CONFIGS[model].input)["job_id"] == ("TYPE_STRING", (1,))


@pytest.mark.parametrize("path", ALTERNATIVES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_an_alternative_configuration_takes_and_gives_the_same_tensors(path: Path) -> None:
    default = CONFIGS[path.parts[-3]]
    alternative = read(path)
    assert alternative.name == default.name
    assert alternative.backend == default.backend
    assert list(alternative.input) == list(default.input)
    assert list(alternative.output) == list(default.output)
    assert list(alternative.instance_group) == list(default.instance_group)


def test_the_plain_denoiser_runs_each_batch_to_its_end() -> None:
    plain = read(REPOSITORY / "unet" / "configs" / "plain.pbtxt")
    assert plain.WhichOneof("scheduling_choice") == "dynamic_batching"


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("*/1/*.py")), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_the_glue_stays_thin(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
