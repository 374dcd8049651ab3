"""Score candidate pairs with the R-Tagger."""
