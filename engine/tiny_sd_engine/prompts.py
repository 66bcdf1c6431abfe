r"""From a prompt to the CLIP token windows, and the weight of each token, that the text encoder reads.

Emphasis is written as in AUTOMATIC1111's web UI, whose grammar (``parse_prompt_attention``) is the reference:

=======================  ============================================================
``(text)``               weight times 1.1
``[text]``               weight divided by 1.1
``(text:1.3)``           weight times 1.3; a negative number counts as 0
``((text))``             weight times 1.1 twice
``\( \) \[ \] \\``       the character itself
``(text``                a bracket that is never closed reaches to the end
``text)``                a bracket that was never opened is text
=======================  ============================================================

Everything else is text, also a backslash before another character and what the web UI reads as a schedule or a break.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from tiny_sd_engine.errors import InvalidInput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import CLIPTokenizer

MAX_WEIGHT = 10.0
"""Weights lie in 0..MAX_WEIGHT; nested brackets that would exceed it stay at it."""
MAX_WINDOWS = 16
"""Longest prompt in token windows: room for any prompt of the documented 4,000 characters of English."""

# The PyPI packages for weighted prompts (compel and its kin) read another syntax, so this one is parsed here.
# No part can match across a bracket or a colon, so the search is linear however hostile the prompt.
_TOKEN = re.compile(
    r"""
      \\ (?P<literal> [()\[\]\\] )
    | (?P<open> [(\[] )
    | (?: : \s* (?P<weight> [+-]? (?: [0-9]+ (?: \.[0-9]* )? | \.[0-9]+ ) ) \s* (?= \) ) )? (?P<close> [)\]] )
    | [^\\()\[\]:]+
    | [\\:]
    """,
    re.VERBOSE,
)
_OPENER = {")": "(", "]": "["}
_FACTOR = {"(": 1.1, "[": 1 / 1.1}


@dataclass(frozen=True)
class Fragment:
    """A piece of a prompt without its emphasis syntax, and its weight in 0..MAX_WEIGHT."""

    text: str
    weight: float


@dataclass(frozen=True, eq=False)
class Windows:
    """One prompt as the text encoder reads it: each window is BOS, content, EOS, padding.

    ids: [windows, length] int64
    weights: [windows, length] float32, 1 for BOS, EOS and padding
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt and its negative prompt, in equally many windows."""

    prompt: Windows
    negative_prompt: Windows


def tokenize(
    tokenizer: CLIPTokenizer, prompt: str, negative_prompt: str, *, max_windows: int = MAX_WINDOWS
) -> PromptTokens:
    """Tokenize both prompts into windows of ``tokenizer.model_max_length``, the shorter one padded by empty windows.

    A prompt without emphasis that fits one window gets the ids that ``StableDiffusionPipeline.encode_prompt`` uses.

    Raises InvalidInput, naming ``prompt`` or ``negative_prompt``, for more tokens than fit ``max_windows`` windows.
    """
    content = tokenizer.model_max_length - 2
    sides = {"prompt": _weighted_ids(tokenizer, prompt), "negative_prompt": _weighted_ids(tokenizer, negative_prompt)}
    for name, (ids, _) in sides.items():
        if len(ids) > max_windows * content:
            raise InvalidInput(name, f"is {len(ids)} tokens long; at most {max_windows * content}")
    longest = max(len(ids) for ids, _ in sides.values())
    count = max(1, -(-longest // content))
    return PromptTokens(**{name: _windows(tokenizer, *side, count) for name, side in sides.items()})


def parse_emphasis(prompt: str) -> list[Fragment]:
    """Split a prompt into fragments of equal weight, at least one; neighbours differ in weight.

    Never raises. A prompt without brackets and backslashes comes back as it is, with weight 1. Weights are rounded to
    six decimals, so that brackets that cancel out give exactly 1.

    >>> parse_emphasis("a (red:1.3) cat")
    [Fragment(text='a ', weight=1.0), Fragment(text='red', weight=1.3), Fragment(text=' cat', weight=1.0)]
    """
    tokens = list(_TOKEN.finditer(prompt))
    factors, closers = _match_brackets(tokens)
    # Round and square brackets may overlap, as in "(a [b) c]", so each kind has its own stack of running products.
    products = {"(": [1.0], "[": [1.0]}
    pieces = []
    for index, token in enumerate(tokens):
        if index in factors:
            stack = products[token["open"]]
            stack.append(min(stack[-1] * factors[index], MAX_WEIGHT))
        elif index in closers:
            products[_OPENER[token["close"]]].pop()
        else:
            weight = round(products["("][-1] * products["["][-1], 6)
            pieces.append(Fragment(token["literal"] or token[0], weight))
    runs = groupby(pieces, key=attrgetter("weight"))
    return [Fragment("".join(piece.text for piece in run), weight) for weight, run in runs] or [Fragment("", 1.0)]


def _match_brackets(tokens: list[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """Pair brackets: the factor of each opening token and the closing tokens that have a partner, by index."""
    factors: dict[int, float] = {}
    closers: set[int] = set()
    unclosed: dict[str, list[int]] = {"(": [], "[": []}
    for index, token in enumerate(tokens):
        if token["open"]:
            factors[index] = _FACTOR[token["open"]]
            unclosed[token["open"]].append(index)
        elif token["close"] and unclosed[_OPENER[token["close"]]]:
            opener = unclosed[_OPENER[token["close"]]].pop()
            closers.add(index)
            if token["weight"]:
                factors[opener] = min(max(float(token["weight"]), 0.0), MAX_WEIGHT)
    return factors, closers


def _weighted_ids(tokenizer: CLIPTokenizer, prompt: str) -> tuple[list[int], list[float]]:
    """Return the ids of a prompt's tokens, without BOS and EOS, and the weight of each."""
    ids: list[int] = []
    weights: list[float] = []
    for fragment in parse_emphasis(prompt):
        # Not verbose: more tokens than one window is no mistake here.
        tokens = tokenizer(fragment.text, add_special_tokens=False, verbose=False).input_ids
        ids += tokens
        weights += [fragment.weight] * len(tokens)
    return ids, weights


def _windows(tokenizer: CLIPTokenizer, ids: list[int], weights: list[float], count: int) -> Windows:
    """Cut a prompt's tokens into ``count`` windows, the last ones empty where there are not enough."""
    length = tokenizer.model_max_length
    content = length - 2
    windows = Windows(
        ids=np.full((count, length), tokenizer.pad_token_id, np.int64),
        weights=np.ones((count, length), np.float32),
    )
    windows.ids[:, 0] = tokenizer.bos_token_id
    for row in range(count):
        part = slice(row * content, (row + 1) * content)
        end = 1 + len(ids[part])
        windows.ids[row, 1:end] = ids[part]
        windows.ids[row, end] = tokenizer.eos_token_id
        windows.weights[row, 1:end] = weights[part]
    return windows
