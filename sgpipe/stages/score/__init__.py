"""Scorers of relations by other models than the R-Tagger; only what a scorer needs is imported."""
