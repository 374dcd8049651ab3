"""Small tools that know nothing about datasets or models."""

__version__ = "0.1.0"
LARGEST_SEED = 2**63
