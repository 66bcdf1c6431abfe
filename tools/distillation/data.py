"""Where captioned pictures come from."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from distillation.errors import NoPictures
from drawings import caption, draw, random_scene

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_DRAWINGS = 4000
_DRAWINGS_SEED = 0
_WORDINGS = 4  # of each drawing's caption
_CAPTIONS = ("text", "caption")  # columns; the first is the one that Hugging Face's datasets use


class Pictures(Protocol):
    """Captioned pictures, numbered from 0."""

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        """For each picture one or more, which say the same."""

    @property
    def fingerprint(self) -> str:
        """Differs where a picture does. Captions may change without it."""

    def picture(self, number: int, size: int) -> NDArray[np.uint8]:
        """A picture of `size` by `size` pixels: [height, width, 3]. Raises NoPictures."""


def open_pictures(spec: str) -> Pictures:
    """The pictures that a specification names.

    folder:PATH      image files, with captions in metadata.jsonl (file_name, text) or in a .txt beside each
    dataset:NAME     a dataset for the library `datasets`: a name on the hub or a local path; its split "train"
    drawings[:N]     N pictures drawn by this project, 4,000 if not said

    Raises NoPictures.
    """
    kind, _, name = spec.partition(":")
    if kind == "folder" and name:
        return Folder(Path(name).expanduser())
    if kind == "dataset" and name:
        return Dataset(name)
    if kind == "drawings" and (not name or name.isdecimal()) and name != "0":
        return Drawings(int(name or _DRAWINGS))
    raise NoPictures(f"data {spec!r}; allowed: folder:PATH, dataset:NAME, drawings, drawings:NUMBER")


class Folder:
    """Image files with captions, in the order of their names."""

    def __init__(self, folder: Path) -> None:
        """Raises NoPictures for a folder without pictures, and for a picture without a caption."""
        if not folder.is_dir():
            raise NoPictures(f"{folder}: no such folder of pictures")
        metadata = folder / "metadata.jsonl"
        entries = _from_metadata(metadata) if metadata.is_file() else _from_texts(folder)
        if not entries:
            raise NoPictures(f"{folder}: holds no pictures ({', '.join(sorted(_ENDINGS))})")
        self._paths = [path for path, _ in entries]
        self.captions = [(caption,) for _, caption in entries]
        self.fingerprint = _fingerprint(_identity(path) for path in self._paths)

    def picture(self, number: int, size: int) -> NDArray[np.uint8]:
        """The middle of the file's picture. Raises NoPictures for a file that is not one."""
        path = self._paths[number]
        try:
            with Image.open(path) as image:
                return _square(image, size)
        except OSError as error:
            raise NoPictures(f"{path}: cannot be read as a picture: {error}") from None


class Dataset:
    """A dataset of the library `datasets`, its split "train"."""

    def __init__(self, name: str) -> None:
        """Raises NoPictures without the library, for a dataset that it cannot load, and for one without captions."""
        try:
            import datasets  # noqa: PLC0415 - an optional library
        except ImportError as error:
            raise NoPictures(f"dataset: needs the library datasets ({error}); pip install datasets") from None
        try:
            on_disk = Path(name, "state.json").is_file()
            self._rows = datasets.load_from_disk(name) if on_disk else datasets.load_dataset(name, split="train")
        except Exception as error:  # noqa: BLE001 - whatever the library raises, it is about this name
            raise NoPictures(f"dataset {name}: cannot be loaded: {error}") from None
        features = self._rows.features
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        captions = [column for column in _CAPTIONS if column in features]
        if not images or not captions:
            raise NoPictures(f"dataset {name}: needs a column of images and one called text; has {', '.join(features)}")
        self._images = images[0]
        self.captions = [(str(caption),) for caption in self._rows[captions[0]]]
        self.fingerprint = self._rows._fingerprint  # the library's own, over data and transformations

    def picture(self, number: int, size: int) -> NDArray[np.uint8]:
        """The middle of the row's picture."""
        return _square(self._rows[number][self._images], size)


class Drawings:
    """Scenes of this project's own, drawn on demand; none of the combinations that are held out for evaluation."""

    def __init__(self, count: int) -> None:
        """So many, the same every time, and the first of a larger number."""
        chances = [np.random.default_rng((_DRAWINGS_SEED, number)) for number in range(count)]
        self._scenes = [random_scene(chance, "train") for chance in chances]
        self.captions = [
            tuple(caption(scene, chance) for _ in range(_WORDINGS))
            for scene, chance in zip(self._scenes, chances, strict=True)
        ]
        source = Path(inspect.getfile(random_scene)).parent.glob("*.py")
        self.fingerprint = _fingerprint([count, *(path.read_text(encoding="utf-8") for path in sorted(source))])

    def picture(self, number: int, size: int) -> NDArray[np.uint8]:
        """The drawing."""
        return draw(self._scenes[number], size, size)


def _square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS))


def _from_metadata(path: Path) -> list[tuple[Path, str]]:
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            caption = next(str(row[name]) for name in _CAPTIONS if name in row)
            picture = path.parent / row["file_name"]
        except (ValueError, LookupError, TypeError, StopIteration):
            raise NoPictures(f'{path}, line {number}: expected {{"file_name": "…", "text": "…"}}') from None
        if not picture.is_file():
            raise NoPictures(f"{path}, line {number}: {picture} is missing")
        entries.append((picture, caption))
    return sorted(entries)


def _from_texts(folder: Path) -> list[tuple[Path, str]]:
    entries = []
    for picture in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS):
        text = picture.with_suffix(".txt")
        if not text.is_file():
            raise NoPictures(f"{picture}: has no caption; put it into {text.name} or into metadata.jsonl")
        entries.append((picture, text.read_text(encoding="utf-8").strip()))
    return entries


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _fingerprint(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()
