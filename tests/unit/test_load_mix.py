"""load_tests/mix.py: what the callers of a load test ask for."""

from __future__ import annotations

import doctest
from collections import Counter
from random import Random

import pytest

from load_tests import mix
from load_tests.mix import KINDS, USUAL, Mix, Request

SIZES = "512,768,1024"


def requests(count: int, weights: str = USUAL, sizes: str = SIZES, seed: int = 1) -> list[Request]:
    chosen, random = Mix.parse(weights, sizes), Random(seed)
    return [chosen.draw(random) for _ in range(count)]


def test_the_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(mix).failed == 0


def test_a_seed_gives_the_same_requests_again_and_another_one_others() -> None:
    assert requests(50) == requests(50)
    assert requests(50) != requests(50, seed=2)


def test_kinds_are_as_frequent_as_their_weights_say() -> None:
    drawn = Counter(request.kind for request in requests(5000, "draft=6,several=3,long=1"))
    # Within four standard deviations of each binomial count.
    assert drawn["draft"] == pytest.approx(3000, abs=4 * (5000 * 0.6 * 0.4) ** 0.5)
    assert drawn["several"] == pytest.approx(1500, abs=4 * (5000 * 0.3 * 0.7) ** 0.5)
    assert drawn["long"] == pytest.approx(500, abs=4 * (5000 * 0.1 * 0.9) ** 0.5)


def test_the_usual_mix_has_every_kind_and_they_differ_as_they_are_described() -> None:
    drawn = requests(2000)
    assert {request.kind for request in drawn} == set(KINDS)
    for request in drawn:
        wanted = request.parameters
        size = (wanted.img_width, wanted.img_height)
        assert (size == (512, 512)) == (request.kind != "wide")
        assert (wanted.samples > 1) == (request.kind == "several")
        assert (wanted.num_inference_steps >= 60) == (request.kind == "long")
        assert wanted.seed >= 0  # none is left to the server, so that a trace is the same pictures again


@pytest.mark.parametrize("sizes", ["512", "768,512", "128,256,512,1024"])
def test_sizes_are_those_that_the_server_offers_however_few(sizes: str) -> None:
    offered = sorted(map(int, sizes.split(",")))
    drawn = {
        size for each in requests(300, sizes=sizes) for size in (each.parameters.img_width, each.parameters.img_height)
    }
    assert drawn == set(offered[:2])


def test_some_prompts_come_again_and_most_do_not() -> None:
    prompts = Counter(request.parameters.prompt for request in requests(300))
    assert 1 < prompts.most_common(1)[0][1] < 30
    assert 100 < len(prompts) < 300
    assert any(len(prompt.split()) > 75 for prompt in prompts)  # more than one window of CLIP's


@pytest.mark.parametrize(
    ("weights", "sizes", "named"),
    [
        ("", SIZES, "mix: got ''"),
        ("huge", SIZES, "mix: got 'huge'"),
        ("draft=0", SIZES, "mix: got 'draft=0'"),
        ("draft=-1", SIZES, "mix: got"),
        ("draft=inf", SIZES, "mix: got"),
        ("draft=many", SIZES, "mix: got"),
        ("draft=1,draft=2", SIZES, "mix: got"),
        (USUAL, "", "sizes: got ''"),
        (USUAL, "512,x", "sizes: got '512,x'"),
        (USUAL, "0", "sizes: got '0'"),
    ],
)
def test_what_is_no_mix_is_refused_with_what_is_allowed(weights: str, sizes: str, named: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        Mix.parse(weights, sizes)
    assert str(refused.value).startswith(named)
