"""Scores: how probable it is that a relation is correct, by the image itself."""
