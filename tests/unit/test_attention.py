"""Attention to a text that was filled up with tokens of no weight."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from tiny_sd_engine.attention import FilledUp, fill_up_texts

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("tokens", [1, 16, 77, 154])
@torch.inference_mode()
def test_a_text_that_was_filled_up_gives_what_it_gave(tokens: int) -> None:
    attention = Attention(query_dim=32, cross_attention_dim=48, heads=4, dim_head=8)
    latents, texts = torch.randn(2, 60, 32), torch.randn(2, tokens, 48)
    wanted = attention(latents, encoder_hidden_states=texts)
    fill_up_texts(nn.Sequential(attention))
    assert isinstance(attention.processor, FilledUp)
    torch.testing.assert_close(attention(latents, encoder_hidden_states=texts), wanted, rtol=1e-5, atol=1e-6)


def test_attention_of_latents_to_each_other_and_unusual_kinds_stay_as_they_are() -> None:
    of_latents = Attention(query_dim=32, heads=4, dim_head=8)
    unusual = Attention(query_dim=32, cross_attention_dim=48, heads=4, dim_head=8, residual_connection=True)
    normed = Attention(query_dim=32, cross_attention_dim=48, heads=4, dim_head=8, cross_attention_norm="layer_norm")
    fill_up_texts(nn.ModuleList([of_latents, unusual, normed]))
    assert not any(isinstance(module.processor, FilledUp) for module in (of_latents, unusual, normed))
