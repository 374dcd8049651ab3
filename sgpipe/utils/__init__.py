"""Small tools that know nothing of datasets or models."""

__version__ = "0.1.0"
