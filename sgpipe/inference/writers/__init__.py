"""Predictions as files, one module per format."""
