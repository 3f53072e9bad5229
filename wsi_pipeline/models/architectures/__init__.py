"""The networks, each by its name in registry.py."""
