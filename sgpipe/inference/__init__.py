"""Predict relations in the images of shards with a trained network (`sgpipe predict`)."""
