"""A checkpoint folder in diffusers' layout: look it over, load one component of it.

model_index.json  tokenizer/  text_encoder/  unet/  vae/  scheduler/
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_sd_engine.errors import CheckpointError

if TYPE_CHECKING:
    from tiny_sd_engine.device import Device  # brings torch, which the tokenizer stage does without

_WEIGHTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_BIN_NAMES = {"model": "pytorch_model"}
_CONFIGS = {
    "text_encoder": "config.json",
    "unet": "config.json",
    "vae": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}


def inspect(checkpoint: Path) -> None:
    """Check that the folder holds a whole Stable-Diffusion-1.x checkpoint, reading no weights.

    Raises :class:`CheckpointError` naming the first file that is missing, unreadable or cut short. Takes milliseconds.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(checkpoint, "no such folder; it should be a diffusers checkpoint")
    _read_json(checkpoint / "model_index.json")
    for component, config in _CONFIGS.items():
        if not (checkpoint / component).is_dir():
            raise CheckpointError(checkpoint / component, f"missing; a diffusers checkpoint has a folder {component}/")
        _read_json(checkpoint / component / config)
    if not (checkpoint / "tokenizer" / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (checkpoint / "tokenizer" / name).is_file():
                raise CheckpointError(checkpoint / "tokenizer" / name, "missing")
    for component, stem in _WEIGHTS.items():
        for weights in _weight_files(checkpoint / component, stem):
            _check_weights(weights)


def load_tokenizer(checkpoint: Path) -> Any:
    """The CLIP tokenizer."""
    from transformers import CLIPTokenizer  # noqa: PLC0415 - the heavy libraries load only where a stage needs them

    return _load("tokenizer", checkpoint, lambda folder: CLIPTokenizer.from_pretrained(folder, local_files_only=True))


def load_text_encoder(checkpoint: Path, device: Device) -> Any:
    """The CLIP text model, on the device in its precision."""
    from transformers import CLIPTextModel  # noqa: PLC0415

    return _load_network(CLIPTextModel, "text_encoder", checkpoint, device)


def load_unet(checkpoint: Path, device: Device) -> Any:
    """The U-Net, on the device in its precision, laid out for speed."""
    from diffusers import UNet2DConditionModel  # noqa: PLC0415

    return _laid_out(_load_network(UNet2DConditionModel, "unet", checkpoint, device), device)


def load_vae(checkpoint: Path, device: Device) -> Any:
    """The VAE without its encoder half (serving only decodes), on the device in its precision, laid out for
    speed.
    """
    from diffusers import AutoencoderKL  # noqa: PLC0415

    vae = _load_network(AutoencoderKL, "vae", checkpoint, device)
    vae.encoder = None
    vae.quant_conv = None
    return _laid_out(vae, device)


def load_scheduler_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's scheduler configuration."""
    return _read_json(checkpoint / "scheduler" / _CONFIGS["scheduler"])


def tokens_per_window(checkpoint: Path) -> int:
    """Tokens that the text encoder reads at once, BOS and EOS included."""
    return int(_config_value(checkpoint / "text_encoder" / "config.json", "max_position_embeddings"))


def latent_shape(checkpoint: Path) -> tuple[int, int]:
    """Channels of the latents, and pixels per latent along an edge (each VAE block but the last halves the picture)."""
    config = checkpoint / "vae" / "config.json"
    return _config_value(config, "latent_channels"), 2 ** (len(_config_value(config, "block_out_channels")) - 1)


def _load_network(kind: Any, component: str, checkpoint: Path, device: Device) -> Any:
    def load(folder: Path) -> Any:
        network, report = kind.from_pretrained(
            folder,
            dtype=device.dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
        )
        # Both libraries fill gaps with random numbers and only log it: that would serve noise.
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} tensors are missing, like {missing[0]}")
        for name, found, expected in report["mismatched_keys"]:
            raise ValueError(f"tensor {name} has shape {list(found)}; its config.json makes it {list(expected)}")
        return network

    return _load(component, checkpoint, load).to(device.torch_device).eval().requires_grad_(False)


def _load(component: str, checkpoint: Path, load: Callable[[Path], Any]) -> Any:
    folder = checkpoint / component
    try:
        return load(folder)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the libraries raise, the operator needs the folder's name with it
        raise CheckpointError(folder, f"cannot be loaded: {error}") from error


def _laid_out(network: Any, device: Device) -> Any:
    import torch  # noqa: PLC0415

    from tiny_sd_engine.blocks import fuse  # noqa: PLC0415
    from tiny_sd_engine.packed import can_pack, pack  # noqa: PLC0415

    network.to(memory_format=torch.channels_last)
    if can_pack(device):
        fuse(network)
        pack(network)
    return network


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(path, "missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, "is not a JSON object")
    return content


def _config_value(path: Path, name: str) -> Any:
    content = _read_json(path)
    if name not in content:
        raise CheckpointError(path, f"does not say {name}")
    return content[name]


def _weight_files(folder: Path, stem: str) -> list[Path]:
    """The component's weight files: one safetensors, one ``.bin``, or the shards that an index lists."""
    for name, ending in ((stem, "safetensors"), (_BIN_NAMES.get(stem, stem), "bin")):
        whole = folder / f"{name}.{ending}"
        if whole.is_file():
            return [whole]
        index = folder / f"{name}.{ending}.index.json"
        if index.is_file():
            shards = _config_value(index, "weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(index, "lists no weight files; fetch it again")
            return [folder / shard for shard in sorted({str(shard) for shard in shards.values()})]
    raise CheckpointError(folder, f"has no weights; expected {stem}.safetensors or {_BIN_NAMES.get(stem, stem)}.bin")


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(path, "missing")
    if path.suffix == ".bin":
        if not zipfile.is_zipfile(path):
            raise CheckpointError(path, "is not a PyTorch weights file, or was cut short; fetch it again")
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise CheckpointError(path, "is not a safetensors file, or was cut short; fetch it again")
        try:
            header = json.loads(file.read(length))
            tensors = (entry for name, entry in header.items() if name != "__metadata__")
            end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise CheckpointError(path, "has a broken safetensors header; fetch it again") from None
    if size != 8 + length + end:
        raise CheckpointError(path, f"holds {size} bytes where its header promises {8 + length + end}; fetch it again")
