"""Ways to compute a network: uint8 patches in, probabilities out; choice.py takes the fastest that is right."""
