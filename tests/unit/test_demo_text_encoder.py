"""The training of the built-in checkpoint's text encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_recipe import text_encoder
from demo_recipe.text_encoder import ATTRIBUTES
from tiny_sd_engine.vocabulary import write_tokenizer

STEPS = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, max_length=32)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def untrained(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(3)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def embeddings(model: CLIPTextModel, tokenizer: CLIPTokenizer, caption: str) -> torch.Tensor:
    ids = tokenizer(caption, padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        mean: torch.Tensor = model(ids)[0].mean(1)[0]
    return mean


def test_it_learns_to_tell_captions_apart_and_wordings_not(tokenizer: CLIPTokenizer) -> None:
    model = untrained(tokenizer)
    entries = list(text_encoder.train(model, tokenizer, STEPS, 0))
    assert [entry.step for entry in entries] == list(range(1, STEPS + 1))
    losses = [entry.loss for entry in entries]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    asked, same, other = (
        embeddings(model, tokenizer, caption)
        for caption in (
            "a large red circle on a blue background",
            "a big red circle on a blue background",
            "a large red circle on a green background",
        )
    )
    assert (asked - same).norm() < (asked - other).norm()


def test_the_same_seed_gives_the_same_encoder(tokenizer: CLIPTokenizer) -> None:
    first, second = untrained(tokenizer), untrained(tokenizer)
    losses = [[entry.loss for entry in text_encoder.train(model, tokenizer, 3, 0)] for model in (first, second)]
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_caption_is_taken_for_what_it_says(tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = iter(["two small red hearts at the top", "", "a house at night"])
    monkeypatch.setattr(text_encoder, "_CAPTIONS", 3)
    monkeypatch.setattr(text_encoder, "_EMPTY", 0.0)
    monkeypatch.setattr(text_encoder, "caption", lambda _scene, _chance: next(captions))
    _, told = text_encoder._batch(np.random.default_rng(0), tokenizer)
    read_back = [{name: ATTRIBUTES[name][int(told[name][row])] for name in ATTRIBUTES} for row in range(3)]
    shapes = {"shape": "heart", "colour": "red", "size": "small", "position": "top", "count": 2}
    nothing = dict.fromkeys(ATTRIBUTES)
    assert read_back == [nothing | shapes, nothing, nothing | {"subject": "house", "time": "night"}]
