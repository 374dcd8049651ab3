"""Small tools without knowledge of datasets or models."""
