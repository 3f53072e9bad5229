"""How good a model is, on labelled patches and on whole slides."""
