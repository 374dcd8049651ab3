"""Find the boxes of images that have no annotations."""
