"""Reading pictures back: right on the drawings themselves, also when they suffer, and wrong where they are wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from drawings import Landscape, Scene, Shapes, draw, random_scene, resolved
from drawings.palette import COLOURS
from drawings.scene import SUBJECT_COLOURS, SUBJECTS, TIMES
from drawings.shapes import SHAPES
from evaluation.lab import Pixels, common_colour, nearest_colours, to_lab
from evaluation.landscape_reading import LandscapeReading, read_landscape
from evaluation.shapes_reading import ShapesReading, read_shapes

READ = {Shapes: read_shapes, Landscape: read_landscape}
SIDE = 256


def random_scenes(kind: type[Scene], count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [resolved(random_scene(rng, landscapes=float(kind is Landscape))) for _ in range(count)]


@pytest.fixture(scope="module")
def drawn() -> dict[type[Scene], list[tuple[Scene, Pixels]]]:
    """300 scenes of each kind, drawn."""
    return {kind: [(scene, draw(scene, SIDE, SIDE)) for scene in random_scenes(kind, 300)] for kind in READ}


Reading = ShapesReading | LandscapeReading


@pytest.fixture(scope="module")
def read_back(drawn) -> dict[type[Scene], list[tuple[Scene, Reading]]]:
    """The same, read."""
    return {kind: [(scene, READ[kind](pixels)) for scene, pixels in pairs] for kind, pairs in drawn.items()}


def right(scene: Scene, reading: Reading) -> dict[str, bool]:
    return {name: getattr(reading, name) == getattr(scene, name) for name in scene.ATTRIBUTES}


def faults(scene: Scene, pixels: Pixels) -> set[str]:
    return {name for name, is_right in right(scene, READ[type(scene)](pixels)).items() if not is_right}


def jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def blurred(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return ndimage.gaussian_filter(pixels, (2, 2, 0))


def noisy(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return as_pixels(pixels + rng.normal(0, 15, pixels.shape))


def drifted(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Each channel a little stronger or weaker, and shifted."""
    return as_pixels(pixels * rng.uniform(0.92, 1.06, 3) + rng.uniform(-10, 10, 3))


def softened(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """As a VAE leaves it: detail below some pixels lost, edges wavy, patches of slightly wrong colour."""
    small = Image.fromarray(pixels).resize((SIDE // 4, SIDE // 4), Image.Resampling.BOX)
    soft = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    patches = ndimage.zoom(rng.normal(0, 10, (SIDE // 8, SIDE // 8, 3)), (8, 8, 1), order=1)
    return as_pixels(soft + patches)


def as_pixels(values: np.ndarray) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", READ)
def test_drawings_are_read_without_a_fault(kind, read_back):
    results = [right(scene, reading) for scene, reading in read_back[kind]]
    for name in kind.ATTRIBUTES:
        assert np.mean([result[name] for result in results]) >= 0.99, name


@pytest.mark.parametrize("disturbed", [jpeg, blurred, noisy, drifted, softened])
@pytest.mark.parametrize("kind", READ)
def test_drawings_that_suffered_are_still_read(kind, disturbed: Callable[..., Pixels], drawn):
    rng = np.random.default_rng(1)
    results = [right(scene, READ[kind](disturbed(pixels, rng))) for scene, pixels in drawn[kind][:100]]
    for name in kind.ATTRIBUTES:
        assert np.mean([result[name] for result in results]) >= 0.97, name


@pytest.mark.parametrize(("width", "height"), [(512, 512), (768, 512), (512, 768), (1024, 1024)])
@pytest.mark.parametrize("kind", READ)
def test_drawings_of_every_size_are_read(kind, width: int, height: int):
    for scene in random_scenes(kind, 6, seed=2):
        assert not faults(scene, draw(scene, width, height)), scene


@pytest.mark.parametrize("kind", READ)
def test_pictures_of_other_scenes_are_right_by_chance_only(kind, read_back):
    for name in kind.ATTRIBUTES:
        labels = [str(getattr(scene, name)) for scene, _ in read_back[kind]]
        found = [str(getattr(reading, name)) for _, reading in read_back[kind]]
        chance = sum((labels.count(label) / len(labels)) ** 2 for label in set(labels))
        shuffled = np.random.default_rng(0).permutation(labels)
        hits = np.mean([one == other for one, other in zip(found, shuffled, strict=True)])
        assert hits == pytest.approx(chance, abs=0.1), name


@pytest.mark.parametrize(
    "change",
    [
        {"background": "pink"},
        {"colour": "purple"},
        {"shape": "diamond"},
        {"size": "medium"},
        {"position": "top left"},
        {"count": 2},
    ],
)
def test_one_wrong_attribute_of_a_shape_is_read_as_wrong_and_no_other(change: dict):
    scene = Shapes(background="white", colour="blue", shape="square", size="small")
    assert faults(scene, draw(replace(scene, **change), SIDE, SIDE)) == set(change)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_one_wrong_attribute_of_a_landscape_is_read_as_wrong_and_no_other(subject: str):
    rng = np.random.default_rng(5)
    for colour in SUBJECT_COLOURS:
        other_colour = rng.choice([other for other in SUBJECT_COLOURS if other != colour])
        time, other_time = rng.choice(TIMES, 2, replace=False)
        scene = Landscape(subject=subject, colour=colour, time=time)
        for change in ({"colour": str(other_colour)}, {"time": str(other_time)}):
            assert faults(scene, draw(replace(scene, variation=77, **change), 128, 128)) == set(change)


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_that_a_bridge_joins_are_counted_one_by_one(shape: str):
    scene = Shapes(background="white", colour="blue", shape=shape, size="medium", count=3, position="center")
    pixels = draw(scene, SIDE, SIDE)
    objects = np.linalg.norm(pixels - 255.0 * COLOURS["white"], axis=-1) > 60
    labels, count = ndimage.label(objects)
    middles = np.array(ndimage.center_of_mass(objects, labels, range(1, count + 1)))
    bridges = np.zeros_like(objects)
    for one, other in combinations(middles, 2):
        ys, xs = np.linspace(one, other, 2 * SIDE).round().astype(int).T
        bridges[ys, xs] = True
    bridges = ndimage.binary_dilation(bridges, iterations=2) & ~ndimage.binary_fill_holes(objects)
    assert ndimage.label(objects | bridges)[1] == 1
    joined = np.where(bridges[..., None], as_pixels(255 * COLOURS["blue"]), pixels)
    assert faults(scene, joined) <= {"shape"}, "which half of a bridge may hang on"


def test_objects_that_differ_have_no_common_colour_or_shape():
    one = Shapes(background="white", colour="red", shape="circle", position="left", variation=3)
    other = replace(one, colour="blue", shape="square", position="right")
    left, right_ = draw(one, SIDE, SIDE), draw(other, SIDE, SIDE)
    reading = read_shapes(np.concatenate([left[:, : SIDE // 2], right_[:, SIDE // 2 :]], axis=1))
    assert (reading.count, reading.colour, reading.shape) == (2, None, None)


def test_an_empty_picture_shows_its_background_only():
    grey_blue = np.full((SIDE, SIDE, 3), (40, 110, 220), np.uint8)
    assert read_shapes(grey_blue) == ShapesReading("blue")


def test_a_blot_has_a_colour_but_no_shape():
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 12)
    yy, xx = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    blot = field / field.std() - 4 * (xx**2 + 0.1 * yy**2) > -0.4
    reading = read_shapes(np.where(blot[..., None], (224, 49, 47), 250).astype(np.uint8))
    assert (reading.colour, reading.background, reading.shape) == ("red", "white", None)


@pytest.mark.parametrize("sigma", [0, 3, 20])
def test_noise_is_no_scene(sigma: int):
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (sigma, sigma, 0))
    pixels = as_pixels(128 + 60 * noise / noise.std())
    landscape = read_landscape(pixels)
    assert (landscape.subject, landscape.colour, landscape.time) == (None, None, None)
    shapes = read_shapes(pixels)
    assert (shapes.shape, shapes.colour, shapes.background) == (None, None, None)


def test_a_picture_of_shapes_is_no_landscape():
    for scene in random_scenes(Shapes, 50):
        assert read_landscape(draw(scene, 128, 128)).subject is None


def test_colours_have_the_coordinates_that_cielab_gives_them():
    # Published values for sRGB under D65: http://www.brucelindbloom.com
    lab = to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8))
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab, expected, atol=0.05)


def test_every_colour_is_nearest_to_itself_also_when_shaded():
    for name, colour in COLOURS.items():
        for light in (0.9, 1.0, 1.05):
            assert nearest_colours(to_lab(as_pixels(colour * light * 255))) == name


def test_a_mixture_of_colours_is_none():
    red, blue = (np.tile(as_pixels(COLOURS[name] * 255), (50, 1)) for name in ("red", "blue"))
    assert common_colour(to_lab(np.concatenate([red, blue]))) is None
    assert common_colour(to_lab(np.concatenate([red, red, blue]))) == "red"
