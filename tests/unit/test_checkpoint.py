"""A checkpoint folder is looked over before it is served, and what is wrong with it is named."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tiny_sd_client.parameters import parse
from tiny_sd_engine.architectures import ARCHITECTURES, write_random
from tiny_sd_engine.checkpoint import (
    inspect,
    latent_shape,
    load_scheduler_config,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
    tokens_per_window,
)
from tiny_sd_engine.device import Device, select_device
from tiny_sd_engine.errors import CheckpointError
from tiny_sd_engine.pipeline import Pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
WEIGHTS = {UNET: load_unet, VAE: load_vae, TEXT_ENCODER: load_text_encoder}
BIN = {
    UNET: "unet/diffusion_pytorch_model.bin",
    VAE: "vae/diffusion_pytorch_model.bin",
    TEXT_ENCODER: "text_encoder/pytorch_model.bin",
}
CONFIGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
]


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return shutil.copytree(checkpoint, tmp_path / "copied")


@pytest.fixture(scope="module")
def cpu() -> Device:
    return select_device("CPU", precision="fp32")


def complaint(checkpoint: Path, about: str, check: Callable[[Path], object] = inspect) -> str:
    """What is said to be wrong with ``about``."""
    with pytest.raises(CheckpointError) as caught:
        check(checkpoint)
    path = checkpoint / about
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def convert_to_bin(checkpoint: Path, weights: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write the weights as the original publishes them, and remove the safetensors."""
    tensors = {name: change(tensor) for name, tensor in load_file(checkpoint / weights).items()}
    torch.save(tensors, checkpoint / BIN[weights])
    (checkpoint / weights).unlink()


def shard(checkpoint: Path, weights: str) -> list[Path]:
    """Write the weights in two files with an index, as large models are published."""
    whole = checkpoint / weights
    tensors = load_file(whole)
    parts = [whole.with_name(f"{whole.stem}-{number:05}-of-00002.safetensors") for number in (1, 2)]
    names = [list(tensors)[number::2] for number in (0, 1)]
    for part, own in zip(parts, names, strict=True):
        save_file({name: tensors[name] for name in own}, part, metadata={"format": "pt"})
    weight_map = {name: part.name for part, own in zip(parts, names, strict=True) for name in own}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole.unlink()
    return parts


# A folder that can be served


def test_a_whole_checkpoint_passes(checkpoint: Path) -> None:
    inspect(checkpoint)


def test_numbers_of_the_architecture_come_from_the_checkpoint(checkpoint: Path) -> None:
    assert latent_shape(checkpoint) == (4, 16)
    assert tokens_per_window(checkpoint) == 77
    assert load_scheduler_config(checkpoint)["beta_end"] == 0.012


def test_networks_come_ready_to_serve(checkpoint: Path, cpu: Device) -> None:
    half = Device(cpu.torch_device, torch.bfloat16)
    for device in (cpu, half):
        for load in WEIGHTS.values():
            network = load(checkpoint, device)
            assert not network.training
            assert {parameter.dtype for parameter in network.parameters()} == {device.dtype}
            assert not any(parameter.requires_grad for parameter in network.parameters())
    assert load_vae(checkpoint, cpu).encoder is None
    convolution = load_unet(checkpoint, cpu).conv_in.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_checkpoint_of_bin_files_gives_the_same_picture(checkpoint: Path, copied: Path, contiguous: bool) -> None:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if contiguous else tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor

    for weights in WEIGHTS:
        convert_to_bin(copied, weights, change)
    if not contiguous:
        assert any(not tensor.is_contiguous() for tensor in torch.load(copied / BIN[UNET]).values())
    assert not list(copied.rglob("*.safetensors"))
    parameters = parse({"prompt": "a red cat", "seed": 3, "img_width": 64, "img_height": 64}, (64,))
    expected = Pipeline.from_checkpoint(checkpoint, "fp32", "CPU").generate(parameters)
    assert Pipeline.from_checkpoint(copied, "fp32", "CPU").generate(parameters).images == expected.images
    assert expected.pixels[0].std() > 10


@pytest.mark.parametrize("weights", [UNET, VAE])
def test_weights_in_shards_are_found(checkpoint: Path, copied: Path, cpu: Device, weights: str) -> None:
    shard(copied, weights)
    inspect(copied)
    ours = WEIGHTS[weights](copied, cpu).state_dict()
    theirs = WEIGHTS[weights](checkpoint, cpu).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_random_weights_are_the_same_each_time(checkpoint: Path, tmp_path: Path) -> None:
    counts = write_random("test", tmp_path / "again")
    for weights in WEIGHTS:
        assert (tmp_path / "again" / weights).read_bytes() == (checkpoint / weights).read_bytes()
    tensors = load_file(checkpoint / UNET)
    assert counts["unet"] == sum(tensor.numel() for tensor in tensors.values())


# A folder that cannot


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no such folder" in complaint(tmp_path / "none", "")
    (tmp_path / "file").write_text("")
    assert "no such folder" in complaint(tmp_path / "file", "")


@pytest.mark.parametrize("component", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_component_is_named(copied: Path, component: str) -> None:
    shutil.rmtree(copied / component)
    assert complaint(copied, component).startswith("missing")


@pytest.mark.parametrize("name", [*CONFIGS, "tokenizer/vocab.json", "tokenizer/merges.txt"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert complaint(copied, name) == "missing"


def test_a_tokenizer_of_one_file_is_enough(copied: Path) -> None:
    expected = load_tokenizer(copied)("a red cat").input_ids
    load_tokenizer(copied).save_pretrained(copied / "tokenizer")
    assert (copied / "tokenizer" / "tokenizer.json").is_file()
    for name in ("vocab.json", "merges.txt"):
        (copied / "tokenizer" / name).unlink(missing_ok=True)
    inspect(copied)
    assert load_tokenizer(copied)("a red cat").input_ids == expected


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[]", b'"text"', b"null"])
def test_broken_json_is_named(copied: Path, name: str, content: bytes) -> None:
    (copied / name).write_bytes(content)
    assert "JSON" in complaint(copied, name)


@pytest.mark.parametrize(
    ("name", "key", "read"),
    [
        ("vae/config.json", "latent_channels", latent_shape),
        ("vae/config.json", "block_out_channels", latent_shape),
        ("text_encoder/config.json", "max_position_embeddings", tokens_per_window),
    ],
)
def test_a_number_that_the_configuration_does_not_say_is_named(
    copied: Path, name: str, key: str, read: Callable[[Path], object]
) -> None:
    config = json.loads((copied / name).read_text())
    del config[key]
    (copied / name).write_text(json.dumps(config))
    assert complaint(copied, name, read) == f"does not say {key}"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_missing_weights_are_named_with_what_is_expected(copied: Path, weights: str) -> None:
    (copied / weights).unlink()
    said = complaint(copied, weights.split("/", maxsplit=1)[0])
    assert Path(weights).name in said
    assert Path(BIN[weights]).name in said


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_safetensors_cut_short_are_named(copied: Path, weights: str, kept: int) -> None:
    content = (copied / weights).read_bytes()
    (copied / weights).write_bytes(content[:kept])
    assert "fetch it again" in complaint(copied, weights)


def test_safetensors_with_too_many_bytes_are_named(copied: Path) -> None:
    content = (copied / UNET).read_bytes()
    (copied / UNET).write_bytes(content + b"\0")
    assert complaint(copied, UNET).startswith(
        f"holds {len(content) + 1} bytes where its header promises {len(content)}"
    )


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        b"[1]",
        b'{"a": 3}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": null}}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": ["zero", "one"]}}',
        b'{"a": {"data_offsets": [0, null]}}',
        b"\xff\xff",
    ],
)
def test_a_broken_safetensors_header_is_named(copied: Path, header: bytes) -> None:
    (copied / VAE).write_bytes(struct.pack("<Q", len(header)) + header)
    assert "broken safetensors header" in complaint(copied, VAE)


@pytest.mark.parametrize("content", [b"<!doctype html><title>Not found</title>" * 10, b"version https://git-lfs\n" * 5])
def test_a_page_in_place_of_weights_is_named(copied: Path, content: bytes) -> None:
    (copied / UNET).write_bytes(content)
    assert "is not a safetensors file" in complaint(copied, UNET)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kept", [0, 100, -1, -100])
def test_bin_files_cut_short_are_named(copied: Path, weights: str, kept: int) -> None:
    convert_to_bin(copied, weights, lambda tensor: tensor)
    inspect(copied)
    content = (copied / BIN[weights]).read_bytes()
    (copied / BIN[weights]).write_bytes(content[:kept])
    assert "cut short" in complaint(copied, BIN[weights])


def test_garbage_in_a_bin_file_is_named(copied: Path) -> None:
    convert_to_bin(copied, UNET, lambda tensor: tensor)
    (copied / BIN[UNET]).write_bytes(b"garbage" * 1000)
    assert "is not a PyTorch weights file" in complaint(copied, BIN[UNET])


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_shard_is_named(copied: Path, which: int) -> None:
    part = shard(copied, UNET)[which]
    part.unlink()
    assert complaint(copied, f"unet/{part.name}") == "missing"


def test_a_shard_cut_short_is_named(copied: Path) -> None:
    part = shard(copied, UNET)[1]
    part.write_bytes(part.read_bytes()[:-1])
    assert "fetch it again" in complaint(copied, f"unet/{part.name}")


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_an_index_without_shards_is_named(copied: Path, content: dict[str, Any]) -> None:
    (copied / UNET).unlink()
    index = f"{UNET}.index.json"
    (copied / index).write_text(json.dumps(content))
    complaint(copied, index)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_missing_tensor_is_named_when_loading(copied: Path, cpu: Device, weights: str) -> None:
    tensors = load_file(copied / weights)
    name = sorted(tensors)[len(tensors) // 2]
    del tensors[name]
    save_file(tensors, copied / weights, metadata={"format": "pt"})
    said = complaint(copied, Path(weights).parts[0], lambda path: WEIGHTS[weights](path, cpu))
    assert said == f"cannot be loaded: 1 tensors are missing, like {name}"


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_tensor_of_the_wrong_shape_is_named_when_loading(copied: Path, cpu: Device, weights: str) -> None:
    tensors = load_file(copied / weights)
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    rows, columns = tensors[name].shape
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, copied / weights, metadata={"format": "pt"})
    said = complaint(copied, Path(weights).parts[0], lambda path: WEIGHTS[weights](path, cpu))
    assert f"tensor {name} has shape [{rows - 1}, {columns}]; its config.json makes it [{rows}, {columns}]" in said


def test_weights_that_pass_inspection_but_cannot_be_read_are_named_when_loading(copied: Path, cpu: Device) -> None:
    header = b'{"a": {"dtype": "NONE", "shape": [1], "data_offsets": [0, 4]}}'
    (copied / UNET).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    inspect(copied)
    assert complaint(copied, "unet", lambda path: load_unet(path, cpu)).startswith("cannot be loaded: ")


def test_a_broken_tokenizer_is_named_when_loading(copied: Path) -> None:
    (copied / "tokenizer" / "vocab.json").write_text("{")
    assert complaint(copied, "tokenizer", load_tokenizer).startswith("cannot be loaded: ")


# The architectures that are downloaded, not made here


@pytest.mark.parametrize(("name", "count"), [("tiny-sd", 323384964), ("small-sd", 579384964), ("sd15", 859520964)])
def test_published_architectures_have_the_published_sizes(name: str, count: int) -> None:
    shape = ARCHITECTURES[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape.unet)
        vae = AutoencoderKL(**shape.vae)
        text_encoder = CLIPTextModel(CLIPTextConfig(**shape.text_encoder))
    assert sum(parameter.numel() for parameter in unet.parameters()) == count
    assert sum(parameter.numel() for parameter in vae.parameters()) == 83653863
    assert sum(parameter.numel() for parameter in text_encoder.parameters()) == 123060480
    # The published .bin also holds the numbers of the 77 positions.
    positions = [
        buffer.numel() for buffer_name, buffer in text_encoder.named_buffers() if "position_ids" in buffer_name
    ]
    assert positions == [77]


def test_the_names_of_published_weights_are_understood(checkpoint: Path, copied: Path, cpu: Device) -> None:
    """The published files are older than the libraries: other names, and the numbers of the positions as a tensor."""
    convert_to_bin(copied, TEXT_ENCODER, lambda tensor: tensor)
    tensors = {f"text_model.{name}": tensor for name, tensor in torch.load(copied / BIN[TEXT_ENCODER]).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(tensors, copied / BIN[TEXT_ENCODER])
    convert_to_bin(copied, VAE, lambda tensor: tensor)
    older = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = torch.load(copied / BIN[VAE])
    for new, old in older.items():
        tensors = {name.replace(f".attentions.0.{new}", f".attentions.0.{old}"): t for name, t in tensors.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
    torch.save(tensors, copied / BIN[VAE])
    inspect(copied)
    for load in (load_text_encoder, load_vae):
        ours, theirs = load(copied, cpu).state_dict(), load(checkpoint, cpu).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
