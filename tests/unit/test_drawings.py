"""tools/drawings: what is drawn, what the captions say, and what training never sees."""

from __future__ import annotations

import doctest
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from drawings import (
    WORDS,
    Landscape,
    Scene,
    Shapes,
    Split,
    caption,
    captions,
    draw,
    landscape_combinations,
    parse,
    random_scene,
    resolved,
    shape_combinations,
)
from drawings.canvas import Canvas
from drawings.palette import COLOURS
from drawings.scene import POSITIONS, SIZES, SUBJECT_COLOURS, SUBJECTS, TIMES, fits
from drawings.shapes import SHAPES
from evaluation.lab import to_lab

CIRCLE = Shapes(shape="circle", colour="red", background="white", variation=4)


def scenes(count: int, split: Split = "train", seed: int = 0, **manner: float) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, split, **manner) for _ in range(count)]


def combination(scene: Scene) -> tuple[str | None, ...]:
    if isinstance(scene, Shapes):
        return scene.shape, scene.colour, scene.background
    return scene.subject, scene.colour, scene.time


HELD_OUT = {*shape_combinations("held-out"), *landscape_combinations("held-out")}


def test_a_seed_gives_the_same_scenes_captions_and_pixels_again():
    def make() -> list[tuple[Scene, str, bytes]]:
        rng = np.random.default_rng(3)
        made = [(scene, caption(scene, rng)) for scene in (random_scene(rng) for _ in range(20))]
        return [(scene, words, draw(scene, 48, 64).tobytes()) for scene, words in made]

    assert make() == make()


def test_another_variation_is_another_picture_of_the_same_words():
    for scene in (CIRCLE, Landscape(subject="house", colour="red", time="day")):
        pictures = {draw(replace(scene, variation=variation), 64, 64).tobytes() for variation in range(10)}
        assert len(pictures) == 10


@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 512), (512, 1024), (33, 65)])
def test_a_drawing_has_the_size_that_was_asked_for(width: int, height: int):
    for scene in (CIRCLE, Landscape(subject="boat")):
        picture = draw(scene, width, height)
        assert (picture.shape, picture.dtype) == ((height, width, 3), np.uint8)


@pytest.mark.parametrize("scene", [CIRCLE, Landscape(subject="balloon", colour="red", time="night", variation=1)])
def test_a_drawing_shows_the_same_at_every_size(scene: Scene):
    small, large = draw(scene, 128, 128), draw(scene, 1024, 1024)
    reduced = np.asarray(Image.fromarray(large).resize((128, 128), Image.Resampling.BOX))
    assert np.abs(small.astype(float) - reduced).mean() < 1.5


def test_edges_are_antialiased_so_that_areas_are_exact_to_a_part_of_a_pixel():
    black, white = np.zeros(3, np.float32), np.ones(3, np.float32)
    for radius in (0.2, 0.203, 0.206):
        canvas = Canvas(100, 100)
        canvas.fill(black, black)
        canvas.disc(0.5, 0.5, radius, white)
        assert canvas.pixels()[..., 0].sum() / 255 == pytest.approx(np.pi * (100 * radius) ** 2, rel=0.002)


def test_shapes_stand_clear_of_the_edges_wherever_they_are():
    for count, size, position in itertools.product((1, 2, 3), SIZES, POSITIONS):
        if not fits(count, size, position):
            continue
        for shape, (width, height) in itertools.product(SHAPES, ((128, 128), (192, 128))):
            scene = Shapes(
                shape=shape, colour="black", background="white", count=count, size=size, position=position, variation=7
            )
            picture = draw(scene, width, height)
            border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert border.min() > 225, scene


def test_the_colours_are_far_apart_to_the_eye():
    lab = to_lab(np.stack([(colour * 255).round().astype(np.uint8) for colour in COLOURS.values()]))
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2)]
    assert min(distances) > 35


def test_captions_say_all_that_a_scene_tells_and_nothing_else():
    rng = np.random.default_rng(0)
    for split in ("train", "held-out"):
        for scene in scenes(3000, split):
            words = caption(scene, rng)
            understood = parse(words)
            assert understood is not None, words
            assert replace(understood, variation=scene.variation) == scene, words


def test_captions_keep_to_a_small_vocabulary():
    rng = np.random.default_rng(0)
    said = [caption(scene, rng) for scene in scenes(3000)]
    assert {word for words in said for word in re.split(r"[ ,]+", words)} <= set(WORDS)
    assert len(WORDS) < 200


def test_captions_are_varied_and_well_formed():
    rng = np.random.default_rng(0)
    scene = Shapes(shape="circle", colour="orange", background="blue", size="small", position="top left")
    said = {caption(scene, rng) for _ in range(300)}
    assert len(said) > 20
    assert "a small orange circle at the top left on a blue background" in said
    for scene in scenes(500):
        words = caption(scene, rng)
        assert not re.search(r"  |\ba [aeio]|\ban [^aeio]|\b(\w+) \1\b| $|^ | ,", words), words


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        (
            "a small red circle on a blue background",
            Shapes(shape="circle", colour="red", background="blue", size="small"),
        ),
        (
            "A large green STAR at the top left, on a yellow background.",
            Shapes(shape="star", colour="green", background="yellow", size="large", position="top left"),
        ),
        ("two orange squares on white", Shapes(shape="square", colour="orange", background="white", count=2)),
        ("a circle on a white background", Shapes(shape="circle", background="white")),
        ("red", Shapes(colour="red")),
        ("a house under a blue sky with a sun", Landscape(subject="house", time="day")),
        ("a red house under a blue sky", Landscape(subject="house", colour="red", time="day")),
        ("a blue sailing boat at sea at sunset", Landscape(subject="boat", colour="blue", time="sunset")),
        ("a tree on a green hill", Landscape(subject="tree")),
        ("purple mountains at night with a moon", Landscape(subject="mountains", colour="purple", time="night")),
        ("a white flower in a green meadow", Landscape(subject="flower", colour="white")),
    ],
)
def test_prompts_like_the_captions_are_understood(prompt: str, scene: Scene):
    assert parse(prompt) == scene


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a red and blue circle",
        "a red circle and a square",
        "a red circle on a red background",
        "a large circle in the left right corner",
        "three large circles",
        "a house at night on a sunny day",
        "a black house",
        "a red house and a star",
        "the",
    ],
)
def test_prompts_that_ask_for_what_cannot_be_drawn_are_not_understood(prompt: str):
    assert parse(prompt) is None


def test_training_never_sees_what_is_held_out():
    seen = {combination(resolved(scene)) for scene in scenes(6000)}
    assert not seen & HELD_OUT
    assert {combination(scene) for scene in scenes(1500, "held-out")} == HELD_OUT


def test_what_a_prompt_says_is_drawn_though_it_be_held_out():
    shape, colour, background = shape_combinations("held-out")[0]
    scene = Shapes(shape=shape, colour=colour, background=background)
    assert resolved(scene) == scene


def test_every_word_of_a_held_out_combination_is_in_training_with_others():
    for split in ("train", "held-out"):
        shapes, landscapes = shape_combinations(split), landscape_combinations(split)
        assert [set(column) for column in zip(*shapes, strict=True)] == [set(SHAPES), set(COLOURS), set(COLOURS)]
        subjects, _, times = (set(column) for column in zip(*landscapes, strict=True))
        assert (subjects, times) == (set(SUBJECTS), set(TIMES))
    assert {colour for _, colour, _ in landscape_combinations("train")} == set(SUBJECT_COLOURS)


def test_scenes_of_training_leave_something_open_now_and_then_and_held_out_ones_never():
    open_ones = [scene for scene in scenes(2000) if None in combination(scene)]
    assert 0.08 < len(open_ones) / 2000 < 0.2
    assert not [scene for scene in scenes(500, "held-out") if None in combination(scene)]


def test_what_is_left_open_becomes_anything_that_fits():
    open_scene = Shapes(shape="circle", background="white")
    colours = {resolved(replace(open_scene, variation=variation)).colour for variation in range(300)}
    allowed = {c for s, c, b in shape_combinations("train") if (s, b) == ("circle", "white")}
    assert colours == allowed


def test_whatever_two_attributes_are_told_the_third_can_be_decided():
    for shape, colour, background in [*shape_combinations("train"), *shape_combinations("held-out")]:
        told = Shapes(shape=shape, colour=colour, background=background)
        for name in ("shape", "colour", "background"):
            assert None not in combination(resolved(replace(told, **{name: None})))
    for subject, colour, time in [*landscape_combinations("train"), *landscape_combinations("held-out")]:
        for scene in (Landscape(subject=subject, colour=colour), Landscape(subject=subject, time=time)):
            assert None not in combination(resolved(scene))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_landscapes_can_be_chosen(share: float):
    found = sum(isinstance(scene, Landscape) for scene in scenes(1000, landscapes=share))
    assert found / 1000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        (Shapes, {"colour": "mauve"}, "colour: got 'mauve'; allowed: None, red"),
        (Shapes, {"shape": "blob"}, "shape: got 'blob'"),
        (Shapes, {"count": 4}, "count: got 4; allowed: 1, 2, 3"),
        (Shapes, {"position": "middle"}, "position: got 'middle'"),
        (Shapes, {"colour": "red", "background": "red"}, "colour: 'red' is the background"),
        (Shapes, {"count": 2, "size": "large"}, "count: no room for 2 large shapes"),
        (Shapes, {"count": 3, "size": "small", "position": "top left"}, "count: no room"),
        (Landscape, {"subject": "castle"}, "subject: got 'castle'"),
        (Landscape, {"subject": "house", "colour": "black"}, "colour: got 'black'"),
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused_by_name(kind: type[Scene], attributes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**attributes)


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(captions).failed == 0
