"""Captioned pictures, drawn from a seed: the world of the demo checkpoint.

>>> rng = np.random.default_rng(7)
>>> scene = random_scene(rng, "train")
>>> prompt, pixels = caption(scene, rng), draw(scene, 512, 512)
"""

from drawings.captions import WORDS, caption, parse
from drawings.drawing import draw
from drawings.sampling import landscape_combinations, random_scene, resolved, shape_combinations
from drawings.scene import Landscape, Scene, Shapes, Split

__all__ = [
    "Scene",
    "Shapes",
    "Landscape",
    "Split",
    "random_scene",
    "resolved",
    "caption",
    "parse",
    "draw",
    "WORDS",
    "shape_combinations",
    "landscape_combinations",
]
