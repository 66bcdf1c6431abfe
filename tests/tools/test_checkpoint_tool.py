"""tools/checkpoint.py on local folders: what it converts stays the same, and what is wrong it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from published import TEXT_ENCODER, UNET, VAE, Touches, published
from running import Tool, names
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoint import main
from checkpoints.layout import choose
from checkpoints.manifest import Manifest
from checkpoints.weights import PRECISIONS, read, write
from tiny_sd_client.parameters import parse
from tiny_sd_engine.pipeline import Pipeline

STEMS = (UNET, VAE, TEXT_ENCODER)
Convert = Callable[[Path, str], Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """Converts a checkpoint, once, to a precision."""

    @cache
    def convert(folder: Path, precision: str) -> Path:
        out = tmp_path_factory.mktemp("converted") / folder.name
        assert main(["convert", str(folder), "--out", str(out), "--precision", precision]) == 0
        return out

    return convert


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return shutil.copytree(checkpoint, tmp_path / "broken")


def manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "manifest.json").read_bytes())


def picture(folder: Path, precision: str) -> bytes:
    parameters = parse({"prompt": "a red cat", "seed": 3, "img_width": 64, "img_height": 64}, (64,))
    return Pipeline.from_checkpoint(folder, precision, "CPU").generate(parameters).images[0]


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Edit a weight file of either kind."""
    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file)
    change(tensors)
    if file.suffix == ".safetensors":
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        torch.save(tensors, file)


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Converting


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bin_files_become_safetensors_of_the_same_numbers(
    checkpoint: Path, bins: Path, converted: Convert, precision: str
) -> None:
    original = torch.load(bins / f"{UNET}.bin")
    assert any(not tensor.is_contiguous() for tensor in original.values())
    out = converted(bins, precision)
    assert not list(out.rglob("*.bin"))
    for stem in STEMS:
        expected = published(checkpoint, stem)
        expected.pop("text_model.embeddings.position_ids", None)
        found = load_file(out / f"{stem}.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.to(PRECISIONS[precision])), name


def test_a_converted_checkpoint_draws_the_same_bytes(bins: Path, converted: Convert) -> None:
    assert picture(converted(bins, "fp32"), "fp32") == picture(bins, "fp32")


def test_weights_that_are_as_asked_for_stay_as_they_are(checkpoint: Path, converted: Convert) -> None:
    out = converted(checkpoint, "fp16")
    for stem in STEMS:
        name = f"{stem}.safetensors"
        assert (out / name).read_bytes() == (checkpoint / name).read_bytes()
        assert manifest(out).files[name].change is None


def test_weights_are_written_as_the_library_would(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / f"{UNET}.safetensors") | {"empty": torch.zeros(0, 3), "number": torch.tensor(1.5)}
    metadata = {"format": "pt"}
    for precision, dtype in PRECISIONS.items():
        write(tmp_path / precision, tensors, precision, metadata)
        save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path / "theirs", metadata)
        assert (tmp_path / precision).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save(
        {"whole": whole, "again": whole, "column": whole[:, 1], "parameter": torch.nn.Parameter(whole[0])},
        tmp_path / "a.bin",
    )
    write(tmp_path / "b", read(tmp_path / "a.bin"), "fp32", {})
    found = load_file(tmp_path / "b")
    assert torch.equal(found["whole"], whole)
    assert torch.equal(found["again"], whole)
    assert found["column"].tolist() == [1, 5, 9]
    assert found["parameter"].tolist() == [0, 1, 2, 3]


def test_shards_become_one_file(checkpoint: Path, broken: Path, tmp_path: Path, tool: Tool) -> None:
    tensors = load_file(broken / f"{UNET}.safetensors")
    names = sorted(tensors)
    parts = [f"{UNET}-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    for part, own in zip(parts, (names[:9], names[9:90], names[90:]), strict=True):
        save_file({name: tensors[name] for name in own}, broken / part, metadata={"format": "pt"})
    (broken / f"{UNET}.safetensors").unlink()
    tool.run("convert", broken, "--out", tmp_path / "out")
    found = load_file(tmp_path / "out" / f"{UNET}.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert list(manifest(tmp_path / "out").files[f"{UNET}.safetensors"].made_from) == parts
    (broken / parts[1]).unlink()
    assert tool.complaint("convert", broken, "--out", tmp_path / "again") == f"{broken / parts[1]}: missing"


def test_of_stable_diffusion_15_only_what_is_served_is_taken(checkpoint: Path, sd15: Path, converted: Convert) -> None:
    out = converted(sd15, "fp16")
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    own = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert made == own | {"LICENSE.md", "README.md", "NOTICE", "manifest.json"}
    assert manifest(out).left_out == ["feature_extractor", "safety_checker"]
    for stem in STEMS:
        expected = published(checkpoint, stem)
        found = load_file(out / f"{stem}.safetensors")
        assert all(torch.equal(found[name], expected[name].half()) for name in found)


def test_diffusers_loads_what_was_made_of_stable_diffusion_15(sd15: Path, converted: Convert) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(converted(sd15, "fp16"))
    assert pipeline.safety_checker is None
    assert pipeline.feature_extractor is None
    assert not pipeline.config.requires_safety_checker


def test_a_half_precision_variant_is_taken_where_there_is_nothing_else(sd15: Path) -> None:
    names = {path.relative_to(sd15).as_posix() for path in sd15.rglob("*") if path.is_file()}
    for kind in ("model.safetensors", "model.bin"):
        names = {name for name in names if not name.endswith(f"_{kind}") and not name.endswith(f"/{kind}")}
    assert choose(names, sd15).weights["unet"] == (f"{UNET}.fp16.safetensors",)
    assert choose(names, sd15).weights["text_encoder"] == (f"{TEXT_ENCODER}.fp16.safetensors",)


# What goes with the files


def test_changed_files_are_marked_and_the_licence_goes_along(sd15: Path, converted: Convert) -> None:
    out = converted(sd15, "fp16")
    notice = (out / "NOTICE").read_text()
    assert "Made from sd15" in notice
    assert "CreativeML Open RAIL-M" in notice
    assert "use-based restrictions" in notice
    assert "endorse" in notice
    assert f"- {UNET}.safetensors: converted from {UNET}.safetensors in fp32 to safetensors in fp16" in notice
    assert "- model_index.json: without feature_extractor, safety_checker" in notice
    assert "- tokenizer" not in notice
    assert (out / "LICENSE.md").read_text() == "The licence itself."
    assert manifest(out).licence == "creativeml-openrail-m"
    with safe_open(out / f"{UNET}.safetensors", "pt") as weights:
        assert "converted from" in weights.metadata()["changed"]


def test_converted_once_more_it_still_names_its_first_source(bins: Path, converted: Convert) -> None:
    second = converted(converted(bins, "fp32"), "fp16")
    assert manifest(second).source.name == "tiny"
    notice = (second / "NOTICE").read_text()
    assert f"converted from {UNET}.bin in fp32 to safetensors in fp32" in notice
    assert f"converted from {UNET}.safetensors in fp32 to safetensors in fp16" in notice


def test_a_source_without_a_licence_is_said_to_have_none(checkpoint: Path, converted: Convert) -> None:
    out = converted(checkpoint, "fp16")
    assert manifest(out).licence is None
    assert "names no licence" in (out / "NOTICE").read_text()
    assert "RAIL" not in (out / "NOTICE").read_text()


def test_the_manifest_finds_a_file_that_was_changed_later(
    checkpoint: Path, converted: Convert, tmp_path: Path, tool: Tool
) -> None:
    folder = shutil.copytree(converted(checkpoint, "fp16"), tmp_path / "changed")
    file = folder / "scheduler/scheduler_config.json"
    change_json(file, beta_end=0.02)
    for command in (["verify", folder], ["convert", folder, "--out", tmp_path / "out"]):
        assert tool.complaint(*command).startswith(f"{file}: is not the file that")
    (folder / "manifest.json").write_text("{}")
    assert tool.complaint("verify", folder).startswith(f"{folder / 'manifest.json'}: is not a manifest")


# Refusals


@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_pickle_that_runs_code_does_not(bins: Path, tmp_path: Path, tool: Tool, command: str) -> None:
    folder = shutil.copytree(bins, tmp_path / "evil")
    file, touched = folder / f"{UNET}.bin", tmp_path / "touched"
    torch.save({**torch.load(file), "more": Touches(touched)}, file)
    said = tool.complaint(command, folder, *(["--out", tmp_path / "out"] if command == "convert" else []))
    assert said == f"{file}: holds Python objects (posix.system) besides tensors; loading them could run code"
    assert names(tmp_path) == ["evil"]
    torch.load(file, weights_only=False)
    assert touched.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([torch.zeros(3)], "holds a list, not tensors by name"),
        ({"a": torch.zeros(3), "step": 5}, "'step' is not a plain tensor that the file holds in full"),
        ({"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}, "'a' is not a plain tensor that the file holds in full"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is not a plain tensor that the file holds in full"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "'a' is not a plain tensor that the file holds in full"),
        ({"state_dict": {"a": torch.zeros(3)}}, "'state_dict' is not a plain tensor that the file holds in full"),
    ],
)
def test_what_else_a_bin_file_holds_is_named(
    bins: Path, tmp_path: Path, tool: Tool, content: object, problem: str
) -> None:
    folder = shutil.copytree(bins, tmp_path / "odd")
    torch.save(content, folder / f"{VAE}.bin")
    assert tool.complaint("convert", folder, "--out", tmp_path / "out") == f"{folder / f'{VAE}.bin'}: {problem}"
    assert names(tmp_path) == ["odd"]


@pytest.mark.parametrize("kept", [0, 1000, -1000])
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_weights_cut_short_are_named(
    checkpoint: Path, bins: Path, tmp_path: Path, tool: Tool, ending: str, kept: int
) -> None:
    folder = shutil.copytree(bins if ending == "bin" else checkpoint, tmp_path / "short")
    file = folder / f"{UNET}.{ending}"
    file.write_bytes(file.read_bytes()[:kept])
    for command in (["verify", folder], ["convert", folder, "--out", tmp_path / "out"]):
        assert tool.complaint(*command).startswith(f"{file}: ")
    assert names(tmp_path) == ["short"]


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_wrong_shape_is_named_with_the_right_one(
    checkpoint: Path, bins: Path, tmp_path: Path, tool: Tool, ending: str
) -> None:
    folder = shutil.copytree(bins if ending == "bin" else checkpoint, tmp_path / "wrong")
    file = folder / f"{UNET}.{ending}"
    name = "conv_in.weight"
    change_tensors(file, lambda tensors: tensors.update({name: tensors[name][:, :3].clone()}))
    for command in (["verify", folder], ["convert", folder, "--out", tmp_path / "out"]):
        assert tool.complaint(*command) == (
            f"{file}: tensor {name} has shape [16, 3, 3, 3]; unet/config.json makes it [16, 4, 3, 3]"
        )
    assert names(tmp_path) == ["wrong"]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_none_are_named(broken: Path, tmp_path: Path, tool: Tool, stem: str, value: float) -> None:
    file = broken / f"{stem}.safetensors"
    name = sorted(load_file(file))[5]
    change_tensors(file, lambda tensors: tensors[name].view(-1)[:2].fill_(value))
    count = load_file(file)[name].numel()
    for command in (["verify", broken], ["convert", broken, "--out", tmp_path / "out"]):
        assert tool.complaint(*command) == f"{file}: tensor {name} holds NaN or infinity in 2 of {count:,} places"
    assert names(tmp_path) == ["broken"]


def test_numbers_too_large_for_the_precision_are_named(bins: Path, tmp_path: Path, tool: Tool) -> None:
    folder = shutil.copytree(bins, tmp_path / "large")
    change_tensors(folder / f"{VAE}.bin", lambda tensors: tensors["encoder.conv_in.bias"].fill_(-70000))
    said = tool.complaint("convert", folder, "--out", tmp_path / "out", "--precision", "fp16")
    assert said.startswith(f"{folder / f'{VAE}.bin'}: tensor encoder.conv_in.bias holds numbers beyond 65504")
    tool.run("convert", folder, "--out", tmp_path / "out", "--precision", "bf16")


def test_weights_of_another_architecture_are_named(checkpoint: Path, broken: Path, tool: Tool) -> None:
    file = broken / f"{UNET}.safetensors"
    change_tensors(file, lambda tensors: tensors.update({"mid_block.extra.weight": torch.zeros(3)}))
    assert tool.complaint("verify", broken) == (
        f"{file}: has 1 tensors that its config.json does not make, like mid_block.extra.weight"
    )
    change_tensors(file, lambda tensors: [tensors.pop("mid_block.extra.weight"), tensors.pop("conv_in.bias")])
    assert tool.complaint("verify", broken) == (
        f"{file}: lacks 1 tensors that its config.json makes, like conv_in.bias"
    )


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_component_is_named(broken: Path, tmp_path: Path, tool: Tool, component: str) -> None:
    shutil.rmtree(broken / component)
    for command in (["verify", broken], ["info", broken], ["convert", broken, "--out", tmp_path / "out"]):
        said = tool.complaint(*command)
        assert said.startswith(str(broken / component))
        assert "missing" in said


def test_a_tokenizer_with_more_tokens_than_the_text_encoder_is_named(broken: Path, tool: Tool) -> None:
    file = broken / "tokenizer/vocab.json"
    vocabulary = json.loads(file.read_text())
    file.write_text(json.dumps(vocabulary | {"beyond": 2048}))
    assert tool.complaint("verify", broken) == (
        f"{broken / 'tokenizer'}: has token ids up to 2048; the text encoder's end at 2047"
    )


def test_a_tokenizer_with_longer_windows_than_the_text_encoder_is_named(broken: Path, tool: Tool) -> None:
    change_json(broken / "tokenizer/tokenizer_config.json", model_max_length=78)
    assert tool.complaint("verify", broken) == (
        f"{broken / 'tokenizer'}: makes windows of 78 tokens; the text encoder has room for 77"
    )


def test_networks_that_do_not_fit_each_other_are_named(broken: Path, tool: Tool) -> None:
    change_json(broken / "unet/config.json", in_channels=9)  # as for inpainting
    change_tensors(
        broken / f"{UNET}.safetensors", lambda tensors: tensors.update({"conv_in.weight": torch.ones(16, 9, 3, 3)})
    )
    assert tool.complaint("verify", broken) == (
        f"{broken / 'unet/config.json'}: says in_channels 9, but vae/config.json says latent_channels 4"
    )


def test_networks_whose_numbers_overflow_are_found_by_the_picture(broken: Path, tool: Tool) -> None:
    change_tensors(
        broken / f"{UNET}.safetensors", lambda tensors: tensors.update({"conv_out.bias": torch.full((4,), 3e38)})
    )
    assert tool.complaint("verify", broken).startswith(f"{broken}: makes no picture: the denoiser failed: the latents")


def test_networks_that_paint_one_colour_are_found_by_the_picture(broken: Path, tool: Tool) -> None:
    weights, name = broken / "vae" / "diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"
    change_tensors(weights, lambda tensors: tensors.update({name: torch.zeros_like(tensors[name])}))
    assert tool.complaint("verify", broken).startswith(f"{broken}: makes a picture of one colour only")


def test_nothing_is_written_over(checkpoint: Path, tmp_path: Path, tool: Tool) -> None:
    (tmp_path / "out").mkdir()
    for command in (["convert", checkpoint], ["fetch"], ["random", "--architecture", "test"]):
        assert tool.complaint(*command, "--out", tmp_path / "out").startswith(f"{tmp_path / 'out'} exists")
    assert names(tmp_path) == ["out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, tool: Tool) -> None:
    for command in (["verify"], ["info"], ["convert", "--out", tmp_path / "out"]):
        assert tool.complaint(*command, tmp_path / "none").startswith(f"{tmp_path / 'none'}: no such folder")


# A folder that is right


def test_what_was_verified_is_listed(checkpoint: Path, tool: Tool) -> None:
    output = tool.run("verify", checkpoint)
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert list(lines) == ["files", "text_encoder", "unet", "vae", "tokenizer", "picture", str(checkpoint)]
    count = sum(tensor.numel() for tensor in load_file(checkpoint / f"{UNET}.safetensors").values())
    assert lines["unet"].startswith(f"{count:,} parameters in fp16")


def test_a_folder_of_bin_files_is_verified_as_it_is(bins: Path, tool: Tool) -> None:
    tool.run("verify", bins)


def test_a_folder_is_described(bins: Path, converted: Convert, tool: Tool) -> None:
    output = tool.run("info", converted(bins, "bf16"))
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line}
    assert rows["unet"][:3] == ["UNet2DConditionModel", "191,828", "bf16"]
    assert rows["scheduler"][0]
    assert "DPMSolverMultistepScheduler" in output
    assert "prediction_type=epsilon" in output
    assert "16x16 pixels" in output
    assert rows["source"] == ["tiny"]
    assert rows["licence"] == ["creativeml-openrail-m"]


def test_random_weights_are_described_too(tmp_path: Path, tool: Tool) -> None:
    output = tool.run("random", "--architecture", "test", "--out", tmp_path / "out")
    assert "191,828" in output
