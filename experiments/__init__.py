"""Experiments: models that are trained from nothing, and what they are worth. Run from a clone."""
