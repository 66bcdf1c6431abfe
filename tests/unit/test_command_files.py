"""What the command reads and writes: prompt files, names of pictures, text for terminals."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tiny_sd_client.command.failures import UsageError
from tiny_sd_client.command.files import Folder
from tiny_sd_client.command.prompts import Wish, read_wishes
from tiny_sd_client.command.terminal import half_blocks, printable
from tiny_sd_client.parameters import ImageFormat

JPEG, PNG = ImageFormat.JPEG, ImageFormat.PNG


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_prompt_file_has_one_prompt_a_line_and_comments() -> None:
    data = "\ufeff# my prompts\na red circle\r\n\n   ein grüner Kreis  \n#last\n".encode()
    assert read_wishes(data, "p.txt") == [
        Wish({"prompt": "a red circle"}, "p.txt, line 2"),
        Wish({"prompt": "ein grüner Kreis"}, "p.txt, line 4"),
    ]


def test_a_line_of_a_prompt_file_may_be_a_json_object() -> None:
    wishes = read_wishes(b'{"prompt": "# no comment", "num_inference_steps": 30}\na cat', "p.txt")
    assert [wish.values for wish in wishes] == [
        {"prompt": "# no comment", "num_inference_steps": 30},
        {"prompt": "a cat"},
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", r"^p.txt: holds no prompts$"),
        (b"# nothing\n\n", r"^p.txt: holds no prompts$"),
        (b"a cat\n\xff", r"^p.txt: is not UTF-8 text$"),
        (b"a cat\n{a dog}", r"^p.txt, line 2: begins with { but is not a JSON object$"),
        (b'{"prompt": "a cat"} and more', r"^p.txt, line 1: begins with { but is not a JSON object$"),
        (b'{"a":' * 100_000, r"^p.txt, line 1: begins with { but is not a JSON object$"),
    ],
)
def test_a_prompt_file_that_makes_no_sense_is_refused_with_its_line(data: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_wishes(data, "p.txt")


def test_pictures_in_a_folder_take_their_names_and_never_one_that_is_taken(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new" / "folder"))
    folder.make()
    assert folder.image_format is None
    written = [folder.save_picture(bytes([i]), "7", kind) for i, kind in enumerate([JPEG, JPEG, PNG, JPEG])]
    assert [path.name for path in written] == ["7.jpg", "7-2.jpg", "7.png", "7-3.jpg"]
    assert [path.read_bytes() for path in written] == [b"\0", b"\1", b"\2", b"\3"]


def test_a_file_name_holds_for_every_picture_and_chooses_the_format(tmp_path: Path) -> None:
    (tmp_path / "cat.PNG").write_bytes(b"before")
    folder = Folder(str(tmp_path / "cat.PNG"))
    folder.make()
    assert folder.image_format is PNG
    assert [folder.save_picture(b"new", "7", PNG).name for _ in range(2)] == ["cat-2.PNG", "cat-3.PNG"]
    assert (tmp_path / "cat.PNG").read_bytes() == b"before"
    assert folder.sheet() == tmp_path / "cat-grid.PNG"


def test_overwriting_replaces_what_was_there_but_no_picture_of_the_same_run(tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat-2.jpg", "cat-3.jpg"):
        (tmp_path / name).write_bytes(b"much longer than the new one")
    folder = Folder(str(tmp_path / "cat.jpg"), overwrite=True)
    folder.make()
    for data in (b"1", b"2"):
        folder.save_picture(data, "7", JPEG)
    assert [(tmp_path / name).read_bytes()[:2] for name in names(tmp_path)] == [b"2", b"mu", b"1"]


@pytest.mark.parametrize("out", ["", ".", "..", "folder", "folder/", "folder.jpg/", "sub/folder", "existing.jpg"])
def test_what_names_no_file_is_a_folder(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "existing.jpg").mkdir()
    folder = Folder(out)
    folder.make()
    assert folder.save_picture(b"", "7", JPEG) == Path(out) / "7.jpg"
    assert folder.sheet() == Path(out) / "grid.jpg"


@pytest.mark.parametrize("out", ["cat.gif", "folder/cat.txt", "cat.jpg.bak"])
def test_a_file_of_another_kind_is_refused(out: str) -> None:
    with pytest.raises(UsageError, match=r"--out: got '.*'; allowed: a file in \.jpg, \.jpeg, \.png, \.webp, a folder"):
        Folder(out)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, ein Kätzchen, 日本語　кот 🎉", "a cat, ein Kätzchen, 日本語　кот 🎉"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("one\r\ntwo\tthree\x7f", r"one\r\ntwo\tthree\x7f"),
        ("\u202etac a\u200b\u2028\ud800", r"\u202etac a\u200b\u2028\ud800"),
    ],
)
def test_a_terminal_gets_no_character_that_acts_or_hides(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_text_can_always_be_written_and_stays_so(text: str) -> None:
    assert printable(printable(text)) == printable(text)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in printable(text))
    printable(text).encode()


def cells(image: Image.Image) -> list[tuple[str, object]]:
    """What is drawn for ``image``: characters, with the colours of their upper and lower halves."""
    return [
        (segment.text, segment.style and (segment.style.color.triplet, segment.style.bgcolor.triplet))
        for segment in half_blocks(image, 80, 24).segments
    ]


def test_a_character_shows_two_pixels_one_over_the_other() -> None:
    image = Image.new("RGB", (2, 2))
    image.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)])
    assert cells(image) == [
        ("▀", ((255, 0, 0), (0, 0, 255))),
        ("▀", ((0, 255, 0), (255, 255, 255))),
        ("\n", None),
    ]


@pytest.mark.parametrize(("height", "lines"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_a_last_line_of_pixels_without_a_partner_is_left_out(height: int, lines: int) -> None:
    drawn = [text for text, _ in cells(Image.new("RGB", (1, height), "red"))]
    assert drawn == ["▀", "\n"] * lines


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (40, 20)), ((256, 64), (80, 10)), ((8, 8), (8, 4))])
def test_a_picture_fits_the_terminal_and_is_not_enlarged(size: tuple[int, int], expected: tuple[int, int]) -> None:
    lines = "".join(segment.text for segment in half_blocks(Image.new("RGB", size), 80, 20).segments).splitlines()
    assert (len(lines[0]), len(lines)) == expected
