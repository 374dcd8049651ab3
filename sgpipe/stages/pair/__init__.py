"""Find the pairs of boxes that a triplet may be about."""
