"""A model repository whose networks break for certain requests, as real ones do for reasons of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from local_server.install import ROOT

NAN_SEED = 666
"""A step of the denoiser leaves NaN in its latents."""
LARGE_SEED = 667
"""U-Net calls run out of memory with it."""
MOST_ROWS = 4
"""U-Net calls with more rows run out of memory."""
MOST_WINDOWS = 2
"""Calls of the text encoder with more windows run out of memory."""
WIDE = {"img_width": 256, "img_height": 128}
"""The VAE decoder runs out of memory with pictures that are wider than high."""

_FAULTS = {
    "unet": f"""
from tiny_sd_engine import denoiser

def _with_faults(take_step):
    def faulty(images, unet):
        seeds = [image.job.task.seeds[0] for image in images]
        if {LARGE_SEED} in seeds or sum(image.job.rows for image in images) > {MOST_ROWS}:
            raise torch.OutOfMemoryError("CUDA out of memory")
        take_step(images, unet)
        for image, seed in zip(images, seeds):
            if seed == {NAN_SEED}:
                image.latents.fill_(float("nan"))
    return faulty
denoiser.take_step = _with_faults(denoiser.take_step)
""",
    "text_encoder": f"""
def _with_faults(embed):
    def faulty(self, ids, weights):
        if len(ids) > {MOST_WINDOWS}:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(self, ids, weights)
    return faulty
TextEncoder.embed = _with_faults(TextEncoder.embed)
""",
    "vae_decoder": """
def _with_faults(decode):
    def faulty(self, latents):
        if any(image.shape[-1] > image.shape[-2] for image in latents):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents)
    return faulty
VaeDecoder.decode = _with_faults(VaeDecoder.decode)
""",
}


def write_faulty_repository(folder: Path) -> Path:
    """Copy ours to ``folder`` and put the faults in."""
    shutil.copytree(ROOT / "model_repository", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for model, fault in _FAULTS.items():
        with (folder / model / "1" / "model.py").open("a") as file:
            file.write(fault)
    return folder
