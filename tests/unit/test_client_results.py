"""What the clients return, and what importing them costs."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tiny_sd_client
from tiny_sd_client import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    Generation,
    InvalidParameter,
    Options,
    Parameters,
    Progress,
    ServerFault,
    Stage,
    Timings,
    TinySDError,
    Unavailable,
    UnknownJob,
)
from tiny_sd_client.parameters import parse

CLIENT = Path(__file__).parents[2] / "client"


def picture(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 4), colour).save(file, kind)
    return file.getvalue()


def generation(image_format: str = "jpeg", seeds: tuple[int, ...] = (5, 6)) -> Generation:
    files = tuple(picture(colour, image_format.upper()) for colour in ("red", "blue")[: len(seeds)])
    parameters = parse({"prompt": "x", "samples": len(seeds), "seed": seeds[0], "image_format": image_format})
    return Generation("a-job", files, seeds, parameters, Timings(1.0, 2.0))


def test_a_generation_has_its_pictures_decoded() -> None:
    images = generation("png").images
    assert [image.size for image in images] == [(8, 4), (8, 4)]
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(("image_format", "suffix"), [("jpeg", ".jpg"), ("png", ".png"), ("webp", ".webp")])
def test_files_are_saved_as_they_came_and_called_after_their_seeds(
    image_format: str, suffix: str, tmp_path: Path
) -> None:
    made = generation(image_format)
    paths = made.save(tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{seed}{suffix}" for seed in (5, 6)]
    assert tuple(path.read_bytes() for path in paths) == made.files


def test_saving_never_overwrites(tmp_path: Path) -> None:
    made = generation()
    names = [path.name for _ in range(3) for path in made.save(str(tmp_path))]
    assert names == ["5.jpg", "6.jpg", "5-2.jpg", "6-2.jpg", "5-3.jpg", "6-3.jpg"]
    assert [path.name for path in made.save(tmp_path, "one name")] == ["one name.jpg", "one name-2.jpg"]
    assert [path.name for path in made.save(tmp_path, "cat {seed} {}")] == ["cat 5 {}.jpg", "cat 6 {}.jpg"]
    assert len(list(tmp_path.iterdir())) == 10


def test_progress_has_a_fraction_and_a_preview() -> None:
    told = Progress("a-job", Stage.DENOISING, 5, 20, 1.0, None, (picture("red"), picture("blue")))
    assert told.fraction == 0.25
    assert told.preview is not None
    assert told.preview.size == (8, 4)
    assert Progress("a-job", Stage.QUEUED, 0, 20, 0.0, None).preview is None


def test_options_are_the_documented_parameters_that_may_be_left_out() -> None:
    assert list(Options.__annotations__) == [name for name in Parameters.model_fields if name != "prompt"]


@pytest.mark.parametrize(
    "error", [Busy, Cancelled, DeadlineExceeded, InvalidParameter, ServerFault, Unavailable, UnknownJob]
)
def test_every_error_is_one_of_the_tree(error: type[Exception]) -> None:
    assert issubclass(error, TinySDError)
    assert error.__name__ in str(sys.modules["tiny_sd_client.errors"].__doc__)


def test_errors_survive_a_pickle_for_pools_of_processes() -> None:
    busy = pickle.loads(pickle.dumps(Busy("full", retry_after=3.0, in_flight=4, limit=5)))
    assert (str(busy), busy.retry_after, busy.in_flight, busy.limit) == ("full", 3.0, 4, 5)
    unknown = pickle.loads(pickle.dumps(UnknownJob("gone", job_id="x")))
    assert (str(unknown), unknown.job_id) == ("gone", "x")
    wrong = pickle.loads(pickle.dumps(InvalidParameter("samples", "got 9; allowed: 1 to 4")))
    assert (str(wrong), wrong.parameter, wrong.allowed) == ("samples: got 9; allowed: 1 to 4", "samples", "1 to 4")


@pytest.mark.parametrize("name", tiny_sd_client.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(tiny_sd_client, name).__name__ == name
    assert name in dir(tiny_sd_client)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = tiny_sd_client.Cleint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import tiny_sd_client.parameters", ["grpc", "httpx2", "PIL", "numpy", "tritonclient", "rich", "torch"]),
        ("from tiny_sd_client import Parameters, Busy", ["grpc", "httpx2", "PIL", "numpy", "tritonclient", "torch"]),
        ("from tiny_sd_client import Client, AsyncClient", ["grpc", "httpx2", "tritonclient", "torch"]),
        ("import tiny_sd_client._grpc", ["httpx2", "torch"]),
        ("import tiny_sd_client._http", ["grpc", "tritonclient", "torch"]),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, absent: list[str]) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {absent} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(CLIENT)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "[]\n"
