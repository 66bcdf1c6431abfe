"""``tiny-sd generate``: from wishes to files."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tiny_sd_client.command import parameters
from tiny_sd_client.command.connection import connect
from tiny_sd_client.command.failures import UsageError
from tiny_sd_client.command.files import SUFFIXES, Folder, read
from tiny_sd_client.command.progress import Display
from tiny_sd_client.command.prompts import Wish, read_wishes
from tiny_sd_client.parameters import InvalidParameter, Parameters, parse
from tiny_sd_client.pictures import MAX_SHEET, InvalidImage, columns_for, decode, grid, read_parameters
from tiny_sd_client.results import Generation


def run(options: argparse.Namespace) -> int:
    """Make the pictures that ``options`` ask for and write them. The exit code is 0; everything else is raised."""
    folder = None if options.out == "-" else Folder(options.out, overwrite=options.overwrite)
    wishes = _wishes(options, folder)
    pictures = sum(_checked(wish, folder).samples for wish in wishes)
    if folder is None:
        _check_stdout(options, pictures)
    else:
        folder.make()
    with Display(wanted=not options.quiet) as display, closing(_generations(options, wishes, display)) as generations:
        if folder is None:
            for generation in generations:
                sys.stdout.buffer.write(generation.files[0])
        else:
            path = folder.sheet() if options.grid is True else options.grid
            sheet = _Sheet(path, pictures) if path else None
            digits = len(str(len(wishes))) if options.file else 0
            for result in _saved(generations, folder, digits, sheet):
                display.clear()
                _tell(result, as_json=options.json)
    return 0


def _wishes(options: argparse.Namespace, folder: Folder | None) -> list[Wish]:
    """What is asked for. The parameters of a picture (``--like``) give way to options, and those to a prompt file's."""
    if options.prompt is not None and options.file:
        raise UsageError("a prompt and --file exclude each other")
    if options.prompt is None and not options.file and not options.like:
        raise UsageError("a prompt, --file or --like is needed; see tiny-sd generate --help")
    common = _parameters_of(options.like) if options.like else {}
    if folder and folder.image_format:
        common["image_format"] = folder.image_format.value
    common |= parameters.given(options)
    if options.prompt is not None:
        common["prompt"] = options.prompt
    if not options.file:
        return [Wish(common)]
    wishes = read_wishes(read(options.file), options.file)
    return [Wish(common | wish.values, wish.origin) for wish in wishes]


def _parameters_of(file: str) -> dict[str, object]:
    """What the picture ``file`` was made with, checked."""
    try:
        values = read_parameters(read(file))
        parse(values, sizes=None)
    except (InvalidImage, InvalidParameter) as error:
        error.add_note(file)
        raise
    return values


def _checked(wish: Wish, folder: Folder | None) -> Parameters:
    """The parameters of ``wish``, so that a mistake shows before anything is made; sizes are the server's business."""
    try:
        checked = parse(wish.values, sizes=None)
    except InvalidParameter as error:
        if wish.origin:
            error.add_note(wish.origin)
        raise
    if folder and folder.image_format not in (None, checked.image_format):
        raise UsageError(f"the file of --out is a {folder.image_format}, but {checked.image_format} is asked for")
    return checked


def _generations(
    options: argparse.Namespace, wishes: list[Wish], display: Display
) -> Generator[Generation, None, None]:
    """The finished generations, in the order of ``wishes``. Closing it, as every error, cancels what is under way."""
    with connect(options, timeout=options.timeout, patience=options.patience) as client:
        if len(wishes) > 1:
            display.prompts(0, len(wishes))
            prompts = [wish.values for wish in wishes]
            with closing(client.generate_many(prompts, concurrency=options.concurrency)) as generations:
                for done, generation in enumerate(generations, start=1):
                    yield generation
                    display.prompts(done, len(wishes))
            return
        preview_every = options.preview_every if display.shows_previews else 0
        values: dict[str, Any] = wishes[0].values
        with closing(client.stream(**values, preview_every=preview_every)) as events:
            for event in events:
                if isinstance(event, Generation):
                    yield event
                else:
                    display.generation(event)


def _check_stdout(options: argparse.Namespace, pictures: int) -> None:
    if pictures != 1 or options.json or options.grid is not None:
        raise UsageError("--out -: allowed: one picture, without --json and --grid")
    if sys.stdout.isatty():
        raise UsageError("--out -: stdout is a terminal, which shows no picture files")


class _Sheet:
    """All pictures of a run, kept no larger than they will be on the sheet that goes to ``path``."""

    def __init__(self, path: Path, pictures: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._largest = MAX_SHEET // columns_for(pictures)
        self._images: list[Image.Image] = []

    def add(self, files: Iterable[bytes]) -> None:
        for file in files:
            image = decode(file)
            image.thumbnail((self._largest, self._largest))
            self._images.append(image)

    def file(self) -> bytes:
        data = io.BytesIO()
        grid(self._images).save(data, SUFFIXES[self.path.suffix.lower()].value, quality=90)
        return data.getvalue()


@dataclass(frozen=True)
class _Result:
    """Files that were written, and what --json tells about them."""

    files: list[Path]
    description: dict[str, object]


def _saved(generations: Iterable[Generation], folder: Folder, digits: int, sheet: _Sheet | None) -> Iterator[_Result]:
    """Write each generation, and the sheet at the end.

    digits: of the numbers in front of the files' names, which put them into the order of the wishes; 0 for none
    """
    for number, generation in enumerate(generations, start=1):
        prefix = f"{number:0{digits}}-" if digits else ""
        files = [
            folder.save_picture(file, f"{prefix}{seed}", generation.parameters.image_format)
            for seed, file in zip(generation.seeds, generation.files, strict=True)
        ]
        if sheet:
            sheet.add(generation.files)
        yield _Result(files, _described(generation, files))
    if sheet:
        file = folder.save(sheet.file(), sheet.path)
        yield _Result([file], {"sheet": str(file)})


def _described(generation: Generation, files: list[Path]) -> dict[str, object]:
    return {
        "job_id": generation.job_id,
        "files": [str(file) for file in files],
        "seeds": list(generation.seeds),
        "parameters": generation.parameters.picture(),
        "seconds": {"server": round(generation.timings.server, 3), "total": round(generation.timings.total, 3)},
    }


def _tell(result: _Result, *, as_json: bool) -> None:
    lines = [json.dumps(result.description)] if as_json else result.files
    sys.stdout.writelines(f"{line}\n" for line in lines)
    # At once: whoever reads along wants each picture when it is there.
    sys.stdout.flush()
