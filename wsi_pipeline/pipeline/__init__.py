"""The order of stages, written once, and what a batch does with each of its slides."""
