"""Where captioned pictures come from, in which order they are learned, and how they are encoded once."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distillation import cache
from distillation.batches import Batches, InTurn
from distillation.data import open_pictures
from distillation.errors import NoPictures
from drawings import parse, shape_combinations

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three plain pictures, wider than high."""
    path = tmp_path / "pictures"
    path.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (60, 40), colour).save(path / f"{name}.png")
    return path


def describe(folder: Path, lines: Sequence[object]) -> str:
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return f"folder:{folder}"


# Sources


def test_captions_come_from_text_files(folder: Path) -> None:
    for name in COLOURS:
        (folder / f"{name}.txt").write_text(f"all {name}\n")
    pictures = open_pictures(f"folder:{folder}")
    assert pictures.captions == [("all blue",), ("all green",), ("all red",)]
    assert pictures.picture(2, 16).shape == (16, 16, 3)
    assert (pictures.picture(2, 16) == COLOURS["red"]).all()


@pytest.mark.parametrize("column", ["text", "caption"])
def test_captions_come_from_a_metadata_file(folder: Path, column: str) -> None:
    pictures = open_pictures(describe(folder, [{"file_name": f"{name}.png", column: name} for name in COLOURS]))
    assert {wordings: tuple(pictures.picture(n, 8)[0, 0]) for n, wordings in enumerate(pictures.captions)} == {
        (name,): colour for name, colour in COLOURS.items()
    }


def test_a_picture_is_its_upright_middle(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:40] = COLOURS["red"]
    pixels[:, 40:60] = COLOURS["blue"]
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90° clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "turned.txt").write_text("two colours")
    picture = open_pictures(f"folder:{tmp_path}").picture(0, 20)
    assert (picture[:, 3:7] == COLOURS["red"]).all()
    assert (picture[:, 13:17] == COLOURS["blue"]).all()


def test_drawings_are_the_training_scenes_with_their_captions() -> None:
    pictures = open_pictures("drawings:300")
    held_out = set(shape_combinations("held-out"))
    scenes = [[parse(caption) for caption in wordings] for wordings in pictures.captions]
    assert all(scene is not None and scene == wordings[0] for wordings in scenes for scene in wordings)
    spoken = [(w[0].shape, w[0].colour, w[0].background) for w in scenes if hasattr(w[0], "shape")]
    assert len(spoken) > 100
    assert not held_out.intersection(spoken)
    assert pictures.picture(7, 64).shape == (64, 64, 3)
    assert (open_pictures("drawings:8").picture(7, 64) == pictures.picture(7, 64)).all()
    assert (pictures.picture(6, 64) != pictures.picture(7, 64)).any()


class Rows(list[dict[str, Any]]):
    """As much of a dataset as is asked of one; the library itself cannot be installed beside Triton's wheel."""

    _fingerprint = "the library's own"

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, object]) -> None:
        super().__init__(rows)
        self.features = features

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def test_a_dataset_of_the_library_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("datasets")
    library.Image = type("Image", (), {})  # type: ignore[attr-defined]
    features = {"picture": library.Image(), "text": object()}  # type: ignore[attr-defined]
    rows = [{"picture": Image.open(folder / f"{name}.png"), "text": name} for name in COLOURS]
    loaded = {"somebody/colours": Rows(rows, features), "somebody/numbers": Rows([], {"number": object()})}
    library.load_dataset = lambda name, split: loaded[name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    pictures = open_pictures("dataset:somebody/colours")
    assert pictures.captions == [("red",), ("green",), ("blue",)]
    assert (pictures.picture(1, 8) == COLOURS["green"]).all()
    with pytest.raises(NoPictures, match="needs a column of images and one called text; has number"):
        open_pictures("dataset:somebody/numbers")
    with pytest.raises(NoPictures, match="dataset somebody/else: cannot be loaded"):
        open_pictures("dataset:somebody/else")


def test_without_the_library_a_dataset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(NoPictures, match="pip install datasets"):
        open_pictures("dataset:somebody/something")


@pytest.mark.parametrize("spec", ["", "folder:", "dataset", "drawings:0", "drawings:-1", "drawings:many", "hub:x"])
def test_an_unknown_source_is_refused(spec: str) -> None:
    with pytest.raises(NoPictures, match="allowed: folder:PATH, dataset:NAME, drawings"):
        open_pictures(spec)


def test_a_folder_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NoPictures, match="no such folder"):
        open_pictures(f"folder:{tmp_path / 'none'}")
    with pytest.raises(NoPictures, match=r"blue\.png: has no caption; put it into blue\.txt"):
        open_pictures(f"folder:{folder}")
    with pytest.raises(NoPictures, match=r"line 2: expected"):
        open_pictures(describe(folder, [{"file_name": "red.png", "text": "red"}, {"file_name": "red.png"}]))
    with pytest.raises(NoPictures, match=r"line 1: .*gone\.png is missing"):
        open_pictures(describe(folder, [{"file_name": "gone.png", "text": "gone"}]))
    with pytest.raises(NoPictures, match="holds no pictures"):
        open_pictures(describe(folder, []))


def test_a_file_that_is_no_picture_is_named(folder: Path) -> None:
    (folder / "red.png").write_bytes(b"not a picture")
    pictures = open_pictures(describe(folder, [{"file_name": "red.png", "text": "red"}]))
    with pytest.raises(NoPictures, match=r"red\.png: cannot be read as a picture"):
        pictures.picture(0, 8)


def test_a_changed_picture_changes_the_fingerprint_and_a_changed_caption_does_not(folder: Path) -> None:
    spec = describe(folder, [{"file_name": "red.png", "text": "red"}])
    before = open_pictures(spec).fingerprint
    describe(folder, [{"file_name": "red.png", "text": "crimson"}])
    assert open_pictures(spec).fingerprint == before
    Image.new("RGB", (61, 40)).save(folder / "red.png")
    assert open_pictures(spec).fingerprint != before


# Batches


def make_batches(**change: object) -> Batches:
    """Ten pictures, each given as its number; a text is given as its length."""
    values = {
        "captions": [("x" * (number + 1),) for number in range(10)],
        "pictures": torch.tensor,
        "texts": lambda texts: torch.tensor([len(text) for text in texts]),
        "size": 4,
        "latent_shape": (4, 2, 2),
        "timesteps": 1000,
        "caption_dropout": 0.0,
        "seed": 0,
    }
    return Batches(**{**values, **change})


def test_every_epoch_takes_every_picture_once_in_an_order_of_its_own() -> None:
    batches = make_batches()
    seen = [int(row) for number in range(10) for row in batches[number].pictures]
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_pictures_keep_their_captions() -> None:
    batch = make_batches()[3]
    assert torch.equal(batch.texts, batch.pictures + 1)


def test_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    batches = make_batches()
    for number in (7, 2, 7):
        first, again = batches[number], make_batches()[number]
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(vars(first).values(), vars(again).values(), strict=True)
        )
    assert not torch.equal(batches[0].noise, batches[1].noise)
    assert not torch.equal(batches[0].noise, make_batches(seed=1)[0].noise)
    assert not torch.equal(batches[0].noise, batches[0].posterior_noise)


def test_processes_that_read_ahead_change_nothing() -> None:
    numbers = range(3, 9, 2)
    ahead = list(InTurn([make_batches()]).loader(numbers, workers=2, pin_memory=False))
    assert [batch.pictures.tolist() for batch in ahead] == [make_batches()[n].pictures.tolist() for n in numbers]
    assert all(torch.equal(batch.noise, make_batches()[n].noise) for batch, n in zip(ahead, numbers, strict=True))


def test_chance_is_spread_evenly() -> None:
    batch = make_batches(size=20_000, caption_dropout=0.1, negatives=0.25)[0]
    assert float((batch.texts == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert (batch.timesteps.min(), batch.timesteps.max()) == (0, 999)
    # Of the ten captions, which are as long as their numbers, one in four rows has any, and all alike.
    shares = torch.bincount(batch.negatives) / 20_000
    assert torch.allclose(shares, torch.tensor([0.75, *[0.025] * 10]), atol=0.01)
    tenths = torch.bincount(batch.timesteps // 100, minlength=10) / 2000
    assert torch.allclose(tenths, torch.ones(10), atol=0.1)
    assert float(batch.noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(batch.noise.std()) == pytest.approx(1, abs=0.01)


def test_negatives_change_nothing_else() -> None:
    without, with_them = make_batches()[2], make_batches(negatives=1.0)[2]
    assert without.negatives.tolist() == [0, 0, 0, 0]
    assert with_them.negatives.min() > 0
    for name in vars(without).keys() - {"negatives"}:
        assert torch.equal(getattr(without, name), getattr(with_them, name))


def test_sizes_take_turns() -> None:
    small, large = make_batches(), make_batches(latent_shape=(4, 6, 6), size=1)
    batches = InTurn([small, large])
    for number, (size, turn) in enumerate([(small, 0), (large, 0), (small, 1), (large, 1)]):
        assert torch.equal(batches[number].noise, size[turn].noise)


def test_much_noise_may_be_shown_more_often() -> None:
    batch = make_batches(size=20_000, noise_bias=2.0)[0]
    assert batch.timesteps.max() == 999
    # The density t² integrates to t³.
    tenths = torch.bincount(batch.timesteps // 100, minlength=10) / 20_000
    edges = torch.linspace(0, 1, 11) ** 3
    assert torch.allclose(tenths, edges.diff(), atol=0.01)


def test_all_wordings_of_a_caption_are_used() -> None:
    batch = make_batches(size=3000, captions=[("a", "bb", "ccc")])[0]
    shares = Counter(batch.texts.tolist())
    assert set(shares) == {1, 2, 3}
    assert min(shares.values()) > 900


# Arrays that are computed once


class Squares:
    """Something slow to compute, which counts how often it is asked."""

    def __init__(self) -> None:
        self.groups: list[range] = []
        self.reported: list[int] = []

    def __call__(self, numbers: range) -> torch.Tensor:
        self.groups.append(numbers)
        return torch.tensor([[float(number), float(number) ** 2] for number in numbers])

    def stored(self, path: Path) -> np.ndarray:
        return cache.stored(path, 5, self, at_once=2, begin=lambda total: self.reported.append)


def test_an_array_is_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "squares.npy"
    first, second = Squares(), Squares()
    array = first.stored(path)
    assert first.groups == [range(2), range(2, 4), range(4, 5)]
    assert first.reported == [2, 2, 1]
    assert cache.rows(array, [3, 0]).tolist() == [[3.0, 9.0], [0.0, 0.0]]
    assert isinstance(array, np.memmap)
    assert (second.stored(path) == array).all()
    assert not second.groups


def test_an_array_that_was_broken_off_is_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "squares.npy"

    class Broken(Squares):
        def __call__(self, numbers: range) -> torch.Tensor:
            if 4 in numbers:
                raise KeyboardInterrupt
            return super().__call__(numbers)

    with pytest.raises(KeyboardInterrupt):
        Broken().stored(path)
    assert not list(tmp_path.iterdir())
    assert cache.rows(Squares().stored(path), [4]).tolist() == [[4.0, 16.0]]


def test_an_array_is_named_after_all_that_it_is_computed_from(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    weights = tmp_path / "vae" / "weights"
    weights.write_bytes(b"one")
    key = cache.key("pictures", tmp_path / "vae")
    assert cache.key("pictures", tmp_path / "vae") == key
    assert cache.key("others", tmp_path / "vae") != key
    weights.write_bytes(b"two")
    assert cache.key("pictures", tmp_path / "vae") != key
