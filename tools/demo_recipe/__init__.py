"""How the built-in checkpoint is made: an autoencoder, a teacher, and the student distilled from it."""
