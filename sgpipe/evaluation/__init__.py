"""Evaluation: benchmarks of a model or of prediction files, and the label quality of a run."""
