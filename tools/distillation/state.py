"""The saved state of a run: everything that it needs to go on as if nothing had happened.

It is a folder `step-N` of accelerate's: networks, optimizer, gradient scaler, random numbers, and what was registered.
There is one at a time, and it appears whole or not at all.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from accelerate import Accelerator

_NAME = re.compile(r"step-(\d+)")


def save(accelerator: Accelerator, training: Path, step: int) -> None:
    """Save the state after a step into the folder `training`, unless it is there; then remove older ones."""
    if step in (older := _saved(training)):
        return
    partial = training / ".state"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        partial.rename(training / f"step-{step}")
        for folder in older.values():
            shutil.rmtree(folder)


def restore(accelerator: Accelerator, training: Path) -> int:
    """Load the last state in `training`; the step it was saved after, 0 if there is none."""
    saved = _saved(training)
    if not saved:
        return 0
    step = max(saved)
    accelerator.load_state(str(saved[step]))
    return step


def _saved(training: Path) -> dict[int, Path]:
    return {int(name[1]): path for path in training.glob("step-*") if (name := _NAME.fullmatch(path.name))}
