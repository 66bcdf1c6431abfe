"""What the clients return: progress, pictures, and the state of jobs and server."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from PIL import Image

from tiny_sd_client.parameters import ImageFormat, Parameters
from tiny_sd_client.pictures import decode

_SUFFIXES = {ImageFormat.JPEG: ".jpg", ImageFormat.PNG: ".png", ImageFormat.WEBP: ".webp"}


class Stage(StrEnum):
    """How far a generation is."""

    QUEUED = "queued"
    DENOISING = "denoising"
    DECODING = "decoding"
    DONE = "done"
    CANCELLING = "cancelling"


@dataclass(frozen=True)
class Progress:
    """One look at a generation under way.

    ``step`` of ``steps`` denoising steps are done; ``step`` never falls and ends at ``steps``. ``seconds`` have passed
    since the server admitted the generation, and denoising needs about ``seconds_left`` more (None: not known yet).
    ``previews`` are small JPEG files, one for each picture, or none.
    """

    job_id: str
    stage: Stage
    step: int
    steps: int
    seconds: float
    seconds_left: float | None
    previews: tuple[bytes, ...] = ()

    @property
    def fraction(self) -> float:
        """Part of the denoising that is done, from 0 to 1."""
        return self.step / self.steps

    @property
    def preview(self) -> Image.Image | None:
        """The first picture's preview, if there is one."""
        return decode(self.previews[0]) if self.previews else None


@dataclass(frozen=True)
class Timings:
    """Seconds that a generation took.

    ``server``: from its admission to its answer. ``total``: from the call to the result by the client's clock, waiting
    for a busy server and further attempts included.
    """

    server: float
    total: float


@dataclass(frozen=True)
class Generation:
    """Finished pictures.

    ``files`` are the image files as the server encoded them, ``seeds`` the seed of each; ``parameters`` are the
    resolved ones, which make the same files again.
    """

    job_id: str
    files: tuple[bytes, ...]
    seeds: tuple[int, ...]
    parameters: Parameters
    timings: Timings

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, decoded anew at each call."""
        return [decode(file) for file in self.files]

    def save(self, folder: Path | str, name: str = "{seed}") -> list[Path]:
        """Write the image files into ``folder``, which is made if need be, and return their paths.

        ``name`` is the files' name without suffix; ``{seed}`` in it stands for the picture's seed. A name that is taken
        already gets -2, -3, … appended; no file is ever overwritten. Raises OSError where nothing can be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        suffix = _SUFFIXES[self.parameters.image_format]
        return [
            _write_new(folder, name.replace("{seed}", str(seed)), suffix, file)
            for seed, file in zip(self.seeds, self.files, strict=True)
        ]


@dataclass(frozen=True)
class JobStatus:
    """A generation in flight, whoever asked for it; the fields mean what they mean in :class:`Progress`."""

    job_id: str
    stage: Stage
    step: int
    steps: int
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True)
class ServerStatus:
    """State of a server: Triton's ``version``, and the generations in flight, oldest first.

    A server that is not ``ready`` (starting or stopping) tells nothing of its jobs: the counts are 0 then.
    """

    ready: bool
    version: str
    in_flight: int
    max_in_flight: int
    jobs: tuple[JobStatus, ...]


def _write_new(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    number = 1
    while True:
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            number += 1
        else:
            return path
