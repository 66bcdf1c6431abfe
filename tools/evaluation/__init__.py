"""How well pictures follow their prompts, read from the pixels alone."""
