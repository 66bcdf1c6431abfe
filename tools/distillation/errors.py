"""What keeps a student from being trained, as types. Every message says what to do.

DistillError
├── UnfitTeacher  no student can be cut from this U-Net, or its checkpoint says something that training does not know
├── NoPictures    the training data are missing, empty or cannot be read
├── UnfitOptions  options that do not go together, or with what stands in the output folder
└── Diverged      the loss is no longer a number
"""

from __future__ import annotations


class DistillError(Exception):
    """Base of everything that keeps a student from being trained."""


class UnfitTeacher(DistillError):
    """No student can be cut from this U-Net, or its checkpoint says something that training does not know."""


class NoPictures(DistillError):
    """The training data are missing, empty or cannot be read."""


class UnfitOptions(DistillError):
    """Options that do not go together, or with what stands in the output folder."""


class Diverged(DistillError):
    """The loss is no longer a number."""
