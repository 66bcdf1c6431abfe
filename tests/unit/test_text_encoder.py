"""Prompts become the embeddings that diffusers makes of them, moved by emphasis."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import CLIPTokenizer

from reference import Reference
from tiny_sd_engine.checkpoint import load_tokenizer
from tiny_sd_engine.device import select_device
from tiny_sd_engine.prompts import Windows, tokenize
from tiny_sd_engine.text_encoder import TextEncoder

PLAIN = ["a red cat", "a small blue circle on a green background, by the sea", "naïve 猫 🐈", "x"]


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> TextEncoder:
    return TextEncoder(checkpoint, select_device("CPU", precision="fp32"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> CLIPTokenizer:
    return load_tokenizer(checkpoint)


def windows(tokenizer: CLIPTokenizer, prompt: str, negative_prompt: str = "") -> tuple[Windows, Windows]:
    tokens = tokenize(tokenizer, prompt, negative_prompt)
    return tokens.prompt, tokens.negative_prompt


def embed(encoder: TextEncoder, *many: Windows) -> torch.Tensor:
    ids = torch.cat([torch.from_numpy(side.ids) for side in many])
    weights = torch.cat([torch.from_numpy(side.weights) for side in many])
    return encoder.embed(ids, weights)


@pytest.mark.parametrize("prompt", PLAIN)
@pytest.mark.parametrize("negative_prompt", ["", "blurry, ugly"])
def test_plain_prompts_are_embedded_exactly_as_by_diffusers(
    encoder: TextEncoder, tokenizer: CLIPTokenizer, reference: Reference, prompt: str, negative_prompt: str
) -> None:
    expected = reference.pipeline.encode_prompt(prompt, "cpu", 1, True, negative_prompt)
    for ours, theirs in zip(windows(tokenizer, prompt, negative_prompt), expected, strict=True):
        assert torch.equal(embed(encoder, ours), theirs)


def test_embeddings_are_float32_on_the_cpu(encoder: TextEncoder, tokenizer: CLIPTokenizer) -> None:
    embeddings = embed(encoder, windows(tokenizer, "a cat")[0])
    assert embeddings.shape == (1, 77, 48)
    assert (embeddings.dtype, embeddings.device.type) == (torch.float32, "cpu")
    assert not embeddings.requires_grad


def test_a_weight_of_one_changes_nothing(encoder: TextEncoder, tokenizer: CLIPTokenizer) -> None:
    plain = embed(encoder, windows(tokenizer, "a red cat")[0])
    for prompt in ("a (red:1.0) cat", "(a red cat:1)", "a ([red]) cat"):
        assert torch.equal(embed(encoder, windows(tokenizer, prompt)[0]), plain)


@pytest.mark.parametrize("weight", [0.5, 1.1, 1.3, 10.0])
def test_emphasis_moves_a_token_away_from_the_blank_prompt(
    encoder: TextEncoder, tokenizer: CLIPTokenizer, weight: float
) -> None:
    blank = embed(encoder, windows(tokenizer, "")[0])[0]
    plain = embed(encoder, windows(tokenizer, "a red cat")[0])[0]
    side = windows(tokenizer, f"a (red:{weight}) cat")[0]
    (weighted,) = (side.weights[0] != 1).nonzero()
    assert weighted.tolist() == [2]
    ours = embed(encoder, side)[0]
    torch.testing.assert_close(ours[2], blank[2] + weight * (plain[2] - blank[2]), rtol=1e-5, atol=1e-5)
    assert (ours[2] - plain[2]).abs().max() > 0.01
    others = [place for place in range(77) if place != 2]
    torch.testing.assert_close(ours[others], plain[others], rtol=1e-5, atol=1e-5)


def test_a_token_of_weight_zero_is_what_the_blank_prompt_has_there(
    encoder: TextEncoder, tokenizer: CLIPTokenizer
) -> None:
    blank = embed(encoder, windows(tokenizer, "")[0])[0]
    ours = embed(encoder, windows(tokenizer, "a (red cat:0) dog")[0])[0]
    assert torch.equal(ours[2:4], blank[2:4])
    assert (ours[1] - blank[1]).abs().max() > 0.01
    assert (ours[4] - blank[4]).abs().max() > 0.01


def test_a_prompt_is_embedded_to_the_same_bytes_alone_and_in_company(
    encoder: TextEncoder, tokenizer: CLIPTokenizer
) -> None:
    prompts = [*PLAIN, "a (red:1.3) cat", "", "a [red] cat", "a red cat", "a long story " * 60]
    many = [windows(tokenizer, prompt)[0] for prompt in prompts]
    together = embed(encoder, *many).split([len(side.ids) for side in many])
    for side, ours in zip(many, together, strict=True):
        assert torch.equal(ours, embed(encoder, side))


def test_a_window_that_occurs_several_times_is_computed_once(
    encoder: TextEncoder, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    compute = encoder._encode

    def counting(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return compute(ids)

    monkeypatch.setattr(encoder, "_encode", counting)
    prompts = ["a red cat", "a (red:1.3) cat", "a dog", "a red cat", "a red cat"]
    embeddings = embed(encoder, *(windows(tokenizer, prompt)[0] for prompt in prompts))
    assert calls == [2]
    assert torch.equal(embeddings[0], embeddings[3])
    assert not torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])


def test_a_late_prompt_is_not_encoded_again(checkpoint: Path, encoder: TextEncoder, tokenizer: CLIPTokenizer) -> None:
    of_one = embed(encoder, windows(tokenizer, "")[0]).nbytes
    forgetful = TextEncoder(checkpoint, select_device("CPU", precision="fp32"), cache_bytes=2 * of_one)

    def encoded(*prompts: str) -> int:
        sides = [windows(tokenizer, prompt)[0] for prompt in prompts]
        embeddings, count = forgetful.encode(sides)
        for side, ours in zip(sides, embeddings, strict=True):
            assert torch.equal(ours, embed(encoder, side).flatten(0, 1))
        return count

    assert encoded("a cat", "a dog", "a cat") == 2
    assert encoded("a cat", "a dog") == 0
    assert encoded("a cat", "a (dog:1.2)") == 1, "emphasis makes another text"
    assert encoded("a cat") == 0
    assert encoded("a dog") == 1, "there is room for two, and it was asked for longest ago"
    assert encoded("a long story " * 60) == 1
    assert encoded("a long story " * 60) == 1, "more than there is room for"
    assert encoded(*(f"number {i}" for i in range(5)), "a dog") == 5, "what is there is taken before it is pushed out"
    assert encoded() == 0


def test_a_prompt_that_could_not_be_encoded_is_tried_again(
    checkpoint: Path, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder(checkpoint, select_device("CPU", precision="fp32"))
    sides = windows(tokenizer, "a cat", "a dog")
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(encoder, "_encode", Mock(side_effect=torch.OutOfMemoryError))
        encoder.encode(sides)
    assert encoder.encode(sides)[1] == 2


def test_each_window_of_a_long_prompt_is_embedded_by_itself(
    encoder: TextEncoder, tokenizer: CLIPTokenizer, reference: Reference
) -> None:
    prompt, negative_prompt = windows(tokenizer, "cat " * 75 + "dog " * 75 + "bird", "blurry")
    assert prompt.ids.shape == negative_prompt.ids.shape == (3, 77)
    parts = [("cat " * 75, "blurry"), ("dog " * 75, ""), ("bird", "")]
    for window, texts in enumerate(parts):
        for side, text in zip((prompt, negative_prompt), texts, strict=True):
            expected = reference.pipeline.encode_prompt(text, "cpu", 1, False)[0]
            assert torch.equal(embed(encoder, side)[window], expected[0])
