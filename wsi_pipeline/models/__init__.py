"""Architectures that a model card can name, and the weights that ship with the package."""
