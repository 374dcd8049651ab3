"""Servers of models that a run starts itself, watches, starts again, and ends."""
