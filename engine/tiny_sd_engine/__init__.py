"""Tiny-SD's text-to-image pipeline: torch and diffusers, free of Triton, usable in process."""
