"""Everything that makes the built-in checkpoint, in order. Each part goes on where it was broken off."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from checkpoints.conversion import convert
from demo_recipe import autoencoder, text_encoder
from demo_recipe.networks import write_untrained
from distillation.cache import stored
from distillation.data import open_pictures
from distillation.encoders import latents_file
from distillation.networks import write_component
from distillation.options import Options
from distillation.plot import plot
from distillation.record import Entry, Record, read
from distillation.reporter import Reporter
from distillation.trainer import train
from local_server.install import ROOT

_SEED = 0
_PICTURES = "drawings:8000"
_MORE_SIZES = (768, 1024)
CURVES = ROOT / "docs" / "demo-checkpoint"
_CARD = Path(__file__).with_name("card.md")

_LAST_NOISE_BIAS = 0.5
_NEGATIVES = 0.25
_TEACHER_GUIDANCE, _STUDENT_GUIDANCE = 3.0, 7.5
"""The teacher's own pictures are best at low scales: its world is small, so a caption leaves little open, and guidance
exaggerates. The student's are to be so at the documented default."""

STEPS = {
    "text": 1000,
    "teacher-256": 1500,
    "teacher-512": 1800,
    "teacher": 2000,
    "teacher-sizes": 1200,
    "decoder": 1000,
    "student-first": 1800,
    "student-guided": 500,
    "student-sizes": 1500,
    "student": 800,
    "words": 1000,
    "ablation": 300,
}
"""Of each training."""


def make_encoder(work: Path) -> None:
    """The autoencoder with its encoder set and its decoder untrained: ``work/encoder/vae``."""
    torch.manual_seed(_SEED)
    model = AutoencoderKL(**autoencoder.ARCHITECTURE)
    autoencoder.set_encoder(model, _SEED)
    model.save_pretrained(work / "encoder" / "vae")


def make_decoder(work: Path) -> None:
    """The decoder, trained: ``work/decoder/vae``."""
    model = AutoencoderKL.from_pretrained(work / "encoder" / "vae", local_files_only=True)
    plan = autoencoder.Plan(steps=STEPS["decoder"])
    with _bar(plan.steps) as tell:
        autoencoder.train(model, plan, work / "decoder", tell)
    write_component(model, work / "decoder" / "vae")


def make_text_encoder(work: Path) -> None:
    """A checkpoint of which the text encoder alone is trained: ``work/text``."""
    untrained, out = work / "untrained", work / "text"
    if out.is_dir():
        return
    shutil.rmtree(untrained, ignore_errors=True)
    write_untrained(work / "encoder" / "vae", untrained, _SEED)
    tokenizer = CLIPTokenizer.from_pretrained(untrained / "tokenizer", local_files_only=True)
    model = CLIPTextModel.from_pretrained(untrained / "text_encoder", local_files_only=True)
    _record(text_encoder.train(model, tokenizer, STEPS["text"], _SEED), STEPS["text"], untrained)
    model.save_pretrained(untrained / "text_encoder")
    untrained.rename(out)


def make_words(work: Path) -> None:
    """The text encoder, to which a colour alone is a background's, too: ``work/words``."""
    unfinished, out = work / "words-unfinished", work / "words"
    if out.is_dir():
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer = CLIPTokenizer.from_pretrained(work / "text" / "tokenizer", local_files_only=True)
    model = CLIPTextModel.from_pretrained(work / "text" / "text_encoder", local_files_only=True, dtype=torch.float32)
    _record(text_encoder.widen_colours(model, tokenizer, STEPS["words"], _SEED), STEPS["words"], unfinished)
    write_component(model, unfinished / "text_encoder")
    unfinished.rename(out)


def make_latents(work: Path, size: int) -> None:
    """The latents of all drawings of so many pixels, into the cache. Going through the encoder itself takes 20 times as
    long, for the same.
    """
    vae = work / "encoder" / "vae"
    model = AutoencoderKL.from_pretrained(vae, local_files_only=True)
    pictures = open_pictures(_PICTURES)

    @torch.no_grad()
    def encode(numbers: range) -> Tensor:
        drawings = np.stack([pictures.picture(number, size) for number in numbers])
        moments: Tensor = model.quant_conv(autoencoder.features(autoencoder.pixels(drawings)).repeat(1, 2, 1, 1))
        return moments

    with Reporter() as reporter:
        stored(
            latents_file(work / "cache", pictures, size, vae),
            len(pictures.captions),
            encode,
            at_once=4,
            begin=lambda count: reporter.begin(f"Encoding pictures of {size} pixels", count),
        )


def make_teacher(work: Path) -> None:
    """The U-Net from scratch: ``work/teacher``. First on small pictures, and with an emphasis on much noise, in which
    prompts are learned; then with less of it, so that pictures get clean. And ``work/teacher-sizes``, which learned
    larger pictures, too.
    """
    for pixels in (256, 512, *_MORE_SIZES):
        make_latents(work, pixels)
    small, large, teacher, sizes = (work / name for name in ("teacher-256", "teacher-512", "teacher", "teacher-sizes"))
    train(_teacher(work, work / "text", small, size=256, batch=32, noise_bias=2.0), resume=True)
    train(_teacher(work, small, large, size=512, batch=16, noise_bias=1.0), resume=True)
    usual = _teacher(work, large, teacher, size=512, batch=16, noise_bias=_LAST_NOISE_BIAS)
    train(usual, resume=True)
    larger = replace(usual, checkpoint=teacher, out=sizes, steps=STEPS[sizes.name], more_sizes=_MORE_SIZES)
    train(replace(larger, learning_rate=5e-4, noise_bias=1.0), resume=True)


def make_student(work: Path) -> None:
    """The tiny student of the teacher: ``work/student``. First it learns to be like the teacher, then to be so at a
    higher guidance scale, then on larger pictures and with negative prompts, too; last the usual size again of the
    teacher that learned no other and is better at it.
    """
    first = _student(work, "student-first", STEPS["student-first"])
    train(first, resume=True)
    guided = replace(
        _student(work, "student-guided", STEPS["student-guided"]),
        start=first.out,
        learning_rate=3e-4,
        teacher_guidance=_TEACHER_GUIDANCE,
        student_guidance=_STUDENT_GUIDANCE,
    )
    train(guided, resume=True)
    larger = replace(
        guided,
        checkpoint=work / "teacher-sizes",
        start=guided.out,
        out=work / "student-sizes",
        steps=STEPS["student-sizes"],
        more_sizes=_MORE_SIZES,
        negatives=_NEGATIVES,
    )
    train(larger, resume=True)
    both = replace(larger, checkpoint=work / "teacher", more_sizes_teacher=work / "teacher-sizes")
    train(replace(both, start=larger.out, out=work / "student", steps=STEPS["student"]), resume=True)


def make_ablation(work: Path) -> None:
    """Students that learned for a shorter time, with the teacher's features, without them, and without a teacher."""
    short = _student(work, "student-short", STEPS["ablation"])
    train(short, resume=True)
    train(replace(short, out=work / "no-features", w_feat=0.0), resume=True)
    train(replace(short, out=work / "no-teacher", taught=False, w_task=1.0), resume=True)


def pack(work: Path, out: Path) -> None:
    """The student with the finished text encoder and decoder, half precision, and what is to be known about it: the
    folder ``out``.
    """
    with tempfile.TemporaryDirectory(dir=work) as directory:
        folder = Path(directory, "tiny-sd-demo")
        _copy_whole(work, "student", folder)
        shutil.copytree(work / "words" / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)
        shutil.copyfile(_CARD, folder / "README.md")
        shutil.rmtree(out, ignore_errors=True)
        convert(folder, out, "fp16", lambda _what, _outcome: None)


def complete(work: Path) -> None:
    """Teacher and other students with the finished decoder, to be evaluated: folders in ``work/whole``."""
    for name in ("teacher", "student-short", "no-features", "no-teacher"):
        shutil.rmtree(work / "whole" / name, ignore_errors=True)
        _copy_whole(work, name, work / "whole" / name)


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
    "text-encoder": {"text encoder": "text"},
    "words": {"colours alone": "words"},
    "decoder": {"decoder": "decoder"},
    "teacher": {
        "256 pixels": "teacher-256",
        "512 pixels": "teacher-512",
        "less noise": "teacher",
        "more sizes": "teacher-sizes",
    },
    "student": {
        "first": "student-first",
        "guided": "student-guided",
        "sizes": "student-sizes",
        "two teachers": "student",
    },
    "ablation": {"all": "student-short", "no features": "no-features", "no teacher": "no-teacher"},
}


def make(part: str, work: Path, out: Path) -> None:
    """Make one part. Raises DistillError, the engine's CheckpointError, or OSError."""
    if part == "pack":
        pack(work, out)
    elif part == "curves":
        draw_curves(work, CURVES)
    else:
        _STAGES[part](work)


_STAGES: Mapping[str, Callable[[Path], None]] = {
    "encoder": make_encoder,
    "decoder": make_decoder,
    "text": make_text_encoder,
    "teacher": make_teacher,
    "student": make_student,
    "words": make_words,
    "ablation": make_ablation,
    "whole": complete,
}


def _copy_whole(work: Path, name: str, out: Path) -> None:
    shutil.copytree(work / name, out, ignore=shutil.ignore_patterns("training", "vae"))
    shutil.copytree(work / "decoder" / "vae", out / "vae")


def _teacher(work: Path, start: Path, out: Path, *, size: int, batch: int, noise_bias: float) -> Options:
    return Options(
        checkpoint=start,
        student="same",
        taught=False,
        out=out,
        data=_PICTURES,
        size=size,
        steps=STEPS[out.name],
        batch=batch,
        learning_rate=1e-3,
        schedule="cosine",
        precision="bf16",
        ema=0.995,
        noise_bias=noise_bias,
        cache=work / "cache",
        save_every=250,
        seed=_SEED,
    )


def _student(work: Path, name: str, steps: int) -> Options:
    return Options(
        checkpoint=work / "teacher",
        student="tiny",
        out=work / name,
        data=_PICTURES,
        steps=steps,
        learning_rate=1e-3,
        schedule="cosine",
        precision="bf16",
        ema=0.995,
        w_task=0.0,
        w_feat=0.01,
        noise_bias=_LAST_NOISE_BIAS,
        cache=work / "cache",
        save_every=250,
        seed=_SEED,
    )


def _record(entries: Iterator[Entry], steps: int, folder: Path) -> None:
    """Go through a training's steps, writing their losses into the folder's record."""
    (folder / "training").mkdir(parents=True)
    with _bar(steps) as tell, Record(folder / "training" / "losses.jsonl", after=0) as record:
        for entry in entries:
            record.add(entry)
            tell(entry.step, entry.loss)


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar; what it gives is told each step and its loss."""
    with Reporter() as reporter:
        advance = reporter.begin("Training", steps)
        shown = 0

        def tell(step: int, loss: float) -> None:
            nonlocal shown
            advance(step - shown, f"loss {loss:.3f}")
            shown = step

        yield tell
