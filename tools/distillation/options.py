"""Everything about a training run that its caller decides."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from distillation.errors import UnfitOptions

Student = Literal["tiny", "small", "same"]

# What may differ between a run and its continuation: how far it goes, and how the machine is used.
_FREE = frozenset({"out", "steps", "save_every", "workers", "cache", "device"})


@dataclass(frozen=True)
class Options:
    """One training run. Raises UnfitOptions for values that make no sense, alone or together."""

    checkpoint: Path
    """Diffusers folder: the teacher, or with `taught` off just the first weights and the other components."""
    student: Student
    """Which student to cut; `same` cuts nothing and trains the folder's own U-Net."""
    out: Path
    data: str
    """Which pictures, as `distillation.data.open_pictures` reads it."""
    size: int | None = None
    """Edge of the pictures in pixels; None: what the U-Net's configuration says."""
    more_sizes: tuple[int, ...] = ()
    """Further ones. Batches take turns; of larger pictures they hold fewer, in about as many pixels."""
    more_sizes_teacher: Path | None = None
    """Diffusers folder with another U-Net of the checkpoint's architecture, which teaches these; None: the same one."""
    steps: int = 10_000
    batch: int = 16
    accumulate: int = 1
    """Batches per step."""
    learning_rate: float = 1e-4
    warmup: int = 100
    """Steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float = 0.9999
    """Largest decay of the moving average of the weights; 0: none."""
    w_task: float = 1.0
    w_out: float = 1.0
    w_feat: float = 1.0
    teacher_guidance: float = 1.0
    """Guidance scale of the teacher: what it makes of a caption is taken that many times as far from what it makes of
    none."""
    student_guidance: float = 1.0
    """Likewise of the student: at this scale it is to be like the teacher at its own. What guidance magnifies of the
    student's errors is learned from as magnified. Other scales than 1 take two predictions for each picture."""
    taught: bool = True
    """Off: the student learns from the pictures alone."""
    fresh: bool = False
    """The student starts from random weights instead of the teacher's."""
    start: Path | None = None
    """Diffusers folder with a student of the same cut, whose weights are the first ones."""
    negatives: float = 0.0
    """Share of the pictures whose captions are compared with another picture's instead of none, by guidance: as people
    use negative prompts."""
    train_text_encoder: bool = False
    caption_dropout: float = 0.1
    """Share of the captions replaced by the empty one, so that guidance has something to compare with."""
    noise_bias: float = 0.0
    """Which timesteps are drawn: with a density in proportion to their power of this; 0: all alike. What is where in a
    picture, and so most of what a prompt says, is settled while there is much noise."""
    cache: Path | None = None
    """Folder for latents and text embeddings that are computed once; None: computed in each step."""
    save_every: int = 500
    """Steps between two saved states."""
    seed: int = 0
    workers: int = 2
    """Processes that read pictures where latents are not cached."""
    device: Literal["auto", "CPU", "GPU"] = "auto"

    def __post_init__(self) -> None:
        self._at_least(1, "steps", "batch", "accumulate", "save_every")
        self._at_least(0, "warmup", "noise_bias", "w_task", "w_out", "w_feat", "teacher_guidance", "seed", "workers")
        if not 0 <= self.ema < 1:
            raise UnfitOptions(f"ema is {self.ema}; it must be 0 (none) or a decay below 1")
        for name in ("caption_dropout", "negatives"):
            if not 0 <= getattr(self, name) <= 1:
                raise UnfitOptions(f"{name.replace('_', '-')} is {getattr(self, name)}; it must lie in 0 to 1")
        if self.student_guidance <= 0:
            raise UnfitOptions(f"student-guidance is {self.student_guidance}; it must be greater than 0")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise UnfitOptions("lr and clip must be greater than 0")
        if self.fresh and self.start:
            raise UnfitOptions("fresh is a start from nothing, and start one from a folder; give one of them")
        if self.taught and self.student == "same":
            raise UnfitOptions("a student that is the same as its teacher learns nothing from it; add --no-teacher")
        if self.negatives and self.teacher_guidance == self.student_guidance == 1:
            raise UnfitOptions(
                "negatives are what guidance leads away from; they go with a guidance scale other than 1"
            )
        if self.more_sizes_teacher and not (self.taught and self.more_sizes):
            raise UnfitOptions("more-sizes-teacher goes with --more-sizes, and with a teacher")
        if self.taught and self.train_text_encoder:
            raise UnfitOptions("the teacher needs its own text encoder; --train-text-encoder goes with --no-teacher")

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        path.write_text(json.dumps(self._json(), indent=2) + "\n")

    def check_continues(self, path: Path) -> None:
        """Raise UnfitOptions if a run with the options written at `path` cannot be continued with these."""
        before, now = json.loads(path.read_text()), self._json()
        defaults = {field.name: _plain(field.default) for field in fields(self) if field.name not in _FREE}
        for name, usual in defaults.items():
            begun = before.get(name, usual)  # an option that is younger than the run
            if begun != now[name]:
                raise UnfitOptions(
                    f"{path.parent.parent} was begun with {name} {begun} and is to go on with {now[name]}; "
                    "give the same options, or another --out"
                )

    def _json(self) -> dict[str, Any]:
        return {name: _plain(value) for name, value in asdict(self).items()}

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise UnfitOptions(f"{name.replace('_', '-')} is {getattr(self, name)}; at least {least} is needed")


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Path):
        return str(value.resolve())
    return list(value) if isinstance(value, tuple) else value
