"""Emphasis, windows and the tokenizer of the random checkpoint."""

from __future__ import annotations

import gc
import logging
from itertools import pairwise
from pathlib import Path
from time import thread_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from tiny_sd_engine.errors import InvalidInput
from tiny_sd_engine.prompts import MAX_WEIGHT, Fragment, parse_emphasis, tokenize
from tiny_sd_engine.vocabulary import write_tokenizer

LENGTH = 77
CONTENT = LENGTH - 2

LONG_NEGATIVE = (
    "((worst quality)), (low quality:1.4), (deformed limbs, mutated fingers:1.3), (bad anatomy), extra limb, "
    "(missing hand), [grainy photo], blurry, watermark, signature, text, jpeg artifacts, noise, cropped, ugly face, "
    "poorly drawn hands, poorly drawn face, (mutation:1.2), disfigured, bad eyes, bad hair, missing fingers, "
    "too many fingers, (long neck)"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("", [("", 1)]),
        ("a red circle, by the sea", [("a red circle, by the sea", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("((red)) cat", [("red", 1.21), (" cat", 1)]),
        ("[red] cat", [("red", 0.909091), (" cat", 1)]),
        ("[[red]]", [("red", 0.826446)]),
        ("([red])", [("red", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(red:+2.)", [("red", 2)]),
        ("(a (red:1.5) cat:2)", [("a ", 2), ("red", 3), (" cat", 2)]),
        ("(3:4 ratio:1.2)", [("3:4 ratio", 1.2)]),
        ("(one)(two) (three)", [("onetwo", 1.1), (" ", 1), ("three", 1.1)]),
        ("(a [b) c] d", [("a ", 1.1), ("b", 1), (" c", 0.909091), (" d", 1)]),
    ],
)
def test_emphasis_gives_weights(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert parse_emphasis(prompt) == [Fragment(text, weight) for text, weight in fragments]


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        (r"\(not louder\)", [("(not louder)", 1)]),
        (r"\[not quieter\]", [("[not quieter]", 1)]),
        (r"(cat \(animal\):1.3)", [("cat (animal)", 1.3)]),
        (r"a \\(b)", [("a \\", 1), ("b", 1.1)]),
        (r"c:\temp", [(r"c:\temp", 1)]),
        ("ends with \\", [("ends with \\", 1)]),
        ("16:9) wide", [("16:9) wide", 1)]),
        ("[from:to:0.5]", [("from:to:0.5", 0.909091)]),
        ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
        ("(red:)", [("red:", 1.1)]),
    ],
)
def test_escapes_and_lookalikes_are_text(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert parse_emphasis(prompt) == [Fragment(text, weight) for text, weight in fragments]


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("a (red cat", [("a ", 1), ("red cat", 1.1)]),
        ("a ((red) cat", [("a ", 1), ("red", 1.21), (" cat", 1.1)]),
        ("a [red cat", [("a ", 1), ("red cat", 0.909091)]),
        ("red) cat]", [("red) cat]", 1)]),
        (")(red", [(")", 1), ("red", 1.1)]),
        ("()", [("", 1)]),
        ("(", [("", 1)]),
    ],
)
def test_unbalanced_brackets_reach_to_the_end_or_are_text(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert parse_emphasis(prompt) == [Fragment(text, weight) for text, weight in fragments]


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        ("(x:-1)", 0),
        ("(x:1000)", MAX_WEIGHT),
        (f"(x:{'9' * 500})", MAX_WEIGHT),
        ("((x:5):5)", MAX_WEIGHT),
        ("(" * 20_000 + "x", MAX_WEIGHT),
        ("[" * 20_000 + "x", 0),
        ("(" * 20_000 + "x:0)", 0),
    ],
)
def test_weights_stay_in_their_range(prompt: str, weight: float) -> None:
    assert parse_emphasis(prompt) == [Fragment("x", weight)]


@pytest.mark.parametrize("unit", ["(", ")", "[(", ":", ":1", ": ", ":1 ", "(a:", "\\", "(:1)", "([)]"])
def test_hostile_repetition_is_parsed_in_linear_time(unit: str) -> None:
    def cost(repetitions: int) -> float:
        # This thread's time alone and the best of three, for the rest of the test run has threads and garbage as well.
        return min(_thread_seconds(unit * repetitions + unit[-1] * repetitions) for _ in range(3))

    # 16 times the text: about 16 times the work where that is linear, 256 times where it is quadratic.
    assert cost(32_000) < 64 * cost(2_000)


def _thread_seconds(prompt: str) -> float:
    gc.disable()
    try:
        start = thread_time()
        parse_emphasis(prompt)
        return thread_time() - start
    finally:
        gc.enable()


@given(st.text() | st.text(alphabet="()[]\\:.+-1a ", max_size=60))
def test_any_text_is_parsed(prompt: str) -> None:
    fragments = parse_emphasis(prompt)
    assert fragments
    assert all(0 <= fragment.weight <= MAX_WEIGHT for fragment in fragments)
    assert all(left.weight != right.weight for left, right in pairwise(fragments))
    assert len("".join(fragment.text for fragment in fragments)) <= len(prompt)


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\", exclude_categories=["Cs"])))
def test_text_without_brackets_and_backslashes_is_untouched(prompt: str) -> None:
    assert parse_emphasis(prompt) == [Fragment(prompt, 1.0)]


@given(st.text())
def test_escaped_text_means_itself(text: str) -> None:
    escaped = "".join("\\" + character if character in "()[]\\" else character for character in text)
    assert parse_emphasis(escaped) == [Fragment(text, 1.0)]


@pytest.mark.parametrize("prompt", ["", "a big red circle", "Éléphant 日本語 🎉, don't!", "  spaces\tand\nlines  "])
def test_a_plain_prompt_has_the_ids_of_the_tokenizer(tokenizer: CLIPTokenizer, prompt: str) -> None:
    tokens = tokenize(tokenizer, prompt, "", max_windows=1)
    whole = tokenizer([prompt, ""], padding="max_length", max_length=LENGTH, truncation=True).input_ids
    assert tokens.prompt.ids.tolist() == whole[:1]
    assert tokens.negative_prompt.ids.tolist() == whole[1:]
    assert (tokens.prompt.weights == 1).all()


@given(prompt=st.text(alphabet=st.characters(exclude_characters="()[]\\", exclude_categories=["Cs"]), max_size=18))
def test_any_short_plain_prompt_has_the_ids_of_the_tokenizer(tokenizer: CLIPTokenizer, prompt: str) -> None:
    whole = tokenizer(prompt, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    assert tokenize(tokenizer, prompt, "", max_windows=1).prompt.ids.tolist() == [whole]


@given(prompt=st.text(max_size=80), negative_prompt=st.text(alphabet="(red [cat]:2)", max_size=80))
def test_both_prompts_fill_equally_many_windows(tokenizer: CLIPTokenizer, prompt: str, negative_prompt: str) -> None:
    tokens = tokenize(tokenizer, prompt, negative_prompt, max_windows=20)
    assert tokens.prompt.ids.shape == tokens.negative_prompt.ids.shape
    for windows in (tokens.prompt, tokens.negative_prompt):
        count, length = windows.ids.shape
        assert count >= 1
        assert length == LENGTH
        assert windows.weights.shape == windows.ids.shape
        assert windows.ids.dtype == np.int64
        assert windows.weights.dtype == np.float32
        assert (windows.ids[:, 0] == tokenizer.bos_token_id).all()
        assert (windows.ids[:, -1] == tokenizer.eos_token_id).all()
        assert (windows.weights[:, [0, -1]] == 1).all()


def test_a_long_negative_prompt_takes_two_windows_and_the_prompt_is_padded_to_two(tokenizer: CLIPTokenizer) -> None:
    tokens = tokenize(tokenizer, "a cat", LONG_NEGATIVE, max_windows=3)
    plain = "".join(fragment.text for fragment in parse_emphasis(LONG_NEGATIVE))
    expected = tokenizer(plain, add_special_tokens=False, verbose=False).input_ids
    assert CONTENT < len(expected) < 2 * CONTENT
    assert tokens.prompt.ids.shape == tokens.negative_prompt.ids.shape == (2, LENGTH)

    content = tokens.negative_prompt.ids[:, 1:-1].ravel()
    assert content[: len(expected)].tolist() == expected
    assert (content[len(expected) :] == tokenizer.pad_token_id).all()
    weights = tokens.negative_prompt.weights[:, 1:-1].ravel()
    assert weights[:2] == pytest.approx([1.21, 1.21])
    assert (weights[len(expected) :] == 1).all()

    empty = tokenizer("", padding="max_length", max_length=LENGTH).input_ids
    assert tokens.prompt.ids[1].tolist() == empty


def test_a_full_window_needs_no_second_one(tokenizer: CLIPTokenizer) -> None:
    assert tokenize(tokenizer, "red " * CONTENT, "", max_windows=2).prompt.ids.shape == (1, LENGTH)
    assert tokenize(tokenizer, "red " * (CONTENT + 1), "", max_windows=2).prompt.ids.shape == (2, LENGTH)


def test_each_token_carries_the_weight_of_its_fragment(tokenizer: CLIPTokenizer) -> None:
    windows = tokenize(tokenizer, "a (red:1.5) [circle]", "", max_windows=1).prompt
    assert windows.weights[0, :6] == pytest.approx([1, 1, 1.5, 1 / 1.1, 1, 1])


@pytest.mark.parametrize("parameter", ["prompt", "negative_prompt"])
def test_a_prompt_of_too_many_tokens_is_refused_by_name(tokenizer: CLIPTokenizer, parameter: str) -> None:
    prompts = {"prompt": "", "negative_prompt": ""} | {parameter: "(red) " * (2 * CONTENT + 1)}
    with pytest.raises(InvalidInput, match=rf"^{parameter}: is 151 tokens long; at most 150$") as refusal:
        tokenize(tokenizer, **prompts, max_windows=2)
    assert refusal.value.parameter == parameter


def test_long_prompts_log_no_warning(tokenizer: CLIPTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        tokenize(tokenizer, "red " * 100, "", max_windows=2)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_window_length_and_padding_are_the_tokenizers_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, max_length=16)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, pad_token="!")
    tokens = tokenize(tokenizer, "red " * 15, "", max_windows=2)
    assert tokens.prompt.ids.shape == (2, 16)
    assert tokens.prompt.ids[1, 2:].tolist() == [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 13
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_written_tokenizer_is_the_same_every_time(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "new" / "two"]
    for folder in folders:
        write_tokenizer(folder)
    one, two = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert one == two
    assert set(one) == {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}


def test_the_written_tokenizer_has_the_layout_of_stable_diffusion_1(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.model_max_length == LENGTH
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert tokenizer.bos_token_id == len(tokenizer) - 2
    assert tokenizer.tokenize("a red circle") == ["a</w>", "red</w>", "circle</w>"]


@given(text=st.text(alphabet=st.characters(exclude_characters="|", exclude_categories=["Cs"])))
def test_the_written_tokenizer_knows_every_text(tokenizer: CLIPTokenizer, text: str) -> None:
    # Without "|", as "<|endoftext|>" spelled out is that token, which is also the unknown one.
    assert tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False, verbose=False).input_ids


@pytest.mark.parametrize("text", ["", "a red circle", "日本語 🎉", "naïve zebra"])
def test_the_written_tokenizer_gives_text_back(tokenizer: CLIPTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
