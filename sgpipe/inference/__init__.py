"""`sgpipe predict`: what a trained network predicts for the images of shards."""
