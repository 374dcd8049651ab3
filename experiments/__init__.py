"""Experiments: models trained from scratch, and their quality. Run from a clone."""
