"""Boxes of a detector compared with ground truth."""
