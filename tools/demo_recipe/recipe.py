"""Everything that makes the built-in checkpoint, in order. Each part goes on where it was broken off."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from checkpoints.conversion import convert
from demo_recipe import autoencoder
from demo_recipe.networks import write_untrained
from distillation.options import Options
from distillation.plot import plot
from distillation.record import read
from distillation.reporter import Reporter
from distillation.trainer import train
from local_server.install import ROOT

_SEED = 0
_PICTURES = "drawings:5000"
CURVES = ROOT / "docs" / "demo-checkpoint"
_CARD = Path(__file__).with_name("card.md")

_NOISE_BIAS = 2.0
_GUIDANCE = 0.35
"""At which the teacher is asked. Its own pictures are best at a scale of 2 to 3; the student's so at the usual 7.5."""

DECODER = autoencoder.Plan(steps=1500)


def make_encoder(work: Path) -> None:
    """The autoencoder with its encoder set and its decoder untrained: ``work/encoder/vae``."""
    torch.manual_seed(_SEED)
    model = AutoencoderKL(**autoencoder.ARCHITECTURE)
    autoencoder.set_encoder(model, _SEED)
    model.save_pretrained(work / "encoder" / "vae")


def make_decoder(work: Path) -> None:
    """The decoder, trained: ``work/decoder/vae``."""
    model = AutoencoderKL.from_pretrained(work / "encoder" / "vae", local_files_only=True)
    _train(model, DECODER, work / "decoder")
    model.save_pretrained(work / "decoder" / "vae")


def make_teacher(work: Path) -> None:
    """U-Net and text encoder from scratch: ``work/teacher``.

    First on small pictures, of which a step takes many; last with an emphasis on much noise, where prompts are learned.
    """
    names = ("untrained", "teacher-256", "teacher-512", "teacher-noise", "teacher-late", "teacher")
    untrained, small, large, noise, late, teacher = (work / name for name in names)
    if not untrained.is_dir():
        write_untrained(work / "encoder" / "vae", untrained, _SEED)
    train(_teacher(work, untrained, small, "drawings:10000", size=256, batch=32, steps=3000, rate=1e-3), resume=True)
    train(_teacher(work, small, large, _PICTURES, size=512, batch=16, steps=1200, rate=7e-4), resume=True)
    third = _teacher(work, large, noise, _PICTURES, size=512, batch=16, steps=3000, rate=5e-4)
    train(replace(third, noise_bias=_NOISE_BIAS), resume=True)
    fourth = _teacher(work, noise, late, _PICTURES, size=512, batch=16, steps=2400, rate=6e-4)
    train(replace(fourth, noise_bias=_NOISE_BIAS), resume=True)
    last = _teacher(work, late, teacher, _PICTURES, size=512, batch=16, steps=2000, rate=6e-4)
    train(replace(last, noise_bias=_NOISE_BIAS), resume=True)


def make_student(work: Path) -> None:
    """The tiny student of the teacher: ``work/student``.

    What a caption changes is learned at the teacher's full guidance first: at ``_GUIDANCE`` it is an eighth of that.
    """
    train(_student(work, "student-first"), resume=True)
    last = _student(work, "student", steps=1200)
    last = replace(last, start=work / "student-first", learning_rate=5e-4, teacher_guidance=_GUIDANCE)
    train(last, resume=True)


def make_ablation(work: Path) -> None:
    """Students that did without: the teacher's features, the teacher, even its weights."""
    train(_student(work, "student-short", steps=300), resume=True)
    train(_student(work, "no-features", steps=300, w_feat=0.0), resume=True)
    train(_student(work, "no-teacher", steps=300, taught=False), resume=True)


def pack(work: Path, out: Path) -> None:
    """The student with the finished decoder, half precision, and what is to be known about it: the folder ``out``."""
    with tempfile.TemporaryDirectory(dir=work) as directory:
        folder = Path(directory, "tiny-sd-demo")
        shutil.copytree(work / "student", folder, ignore=shutil.ignore_patterns("training"))
        shutil.rmtree(folder / "vae")
        shutil.copytree(work / "decoder" / "vae", folder / "vae")
        shutil.copyfile(_CARD, folder / "README.md")
        shutil.rmtree(out, ignore_errors=True)
        convert(folder, out, "fp16", lambda _what, _outcome: None)


def draw_curves(work: Path, out: Path) -> None:
    """The losses of all trainings as PNG files in the folder ``out``, and the seconds that their steps took."""
    out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for figure, names in _CURVES.items():
        runs = {name: read(next((work / folder).rglob("losses.jsonl"))) for name, folder in names.items()}
        plot(runs, out / f"{figure}.png")
        seconds |= {name: round(sum(entry.seconds for entry in entries)) for name, entries in runs.items()}
    (out / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")


_CURVES: Mapping[str, Mapping[str, str]] = {
    "decoder": {"decoder": "decoder"},
    "teacher": {
        "256 pixels": "teacher-256",
        "512 pixels": "teacher-512",
        "much noise": "teacher-noise",
        "much noise, on": "teacher-late",
        "much noise, last": "teacher",
    },
    "student": {"full guidance": "student-first", "the demo's": "student"},
    "ablation": {"all": "student-short", "no features": "no-features", "no teacher": "no-teacher"},
}


def make(part: str, work: Path, out: Path) -> None:
    """Make one part. Raises DistillError, the engine's CheckpointError, or OSError."""
    if part == "pack":
        pack(work, out)
    elif part == "curves":
        draw_curves(work, CURVES)
    else:
        _TRAININGS[part](work)


_TRAININGS: Mapping[str, Callable[[Path], None]] = {
    "encoder": make_encoder,
    "decoder": make_decoder,
    "teacher": make_teacher,
    "student": make_student,
    "ablation": make_ablation,
}


def _teacher(
    work: Path, start: Path, out: Path, data: str, *, size: int, batch: int, steps: int, rate: float
) -> Options:
    return Options(
        checkpoint=start,
        student="same",
        taught=False,
        train_text_encoder=True,
        out=out,
        data=data,
        size=size,
        steps=steps,
        batch=batch,
        learning_rate=rate,
        schedule="cosine",
        precision="bf16",
        cache=work / "cache",
        save_every=200,
        seed=_SEED,
    )


def _student(work: Path, name: str, *, steps: int = 2400, w_feat: float = 0.01, taught: bool = True) -> Options:
    return Options(
        checkpoint=work / "teacher",
        student="tiny",
        out=work / name,
        data=_PICTURES,
        steps=steps,
        learning_rate=1e-3,
        schedule="cosine",
        precision="bf16",
        w_task=0.0 if taught else 1.0,  # what the teacher takes a picture for holds less noise than the picture
        w_feat=w_feat,
        taught=taught,
        noise_bias=_NOISE_BIAS,
        cache=work / "cache",
        save_every=200,
        seed=_SEED,
    )


def _train(model: AutoencoderKL, plan: autoencoder.Plan, folder: Path) -> None:
    with Reporter() as reporter:
        advance = reporter.begin("Training", plan.steps)
        shown = 0

        def tell(step: int, loss: float) -> None:
            nonlocal shown
            advance(step - shown, f"loss {loss:.3f}")
            shown = step

        autoencoder.train(model, plan, folder, tell)
