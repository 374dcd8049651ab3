"""Statistics of a run: what is in here, and how much of it."""
