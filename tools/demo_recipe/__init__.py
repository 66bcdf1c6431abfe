"""How the built-in checkpoint is made."""
