"""Patches in, probabilities out."""
