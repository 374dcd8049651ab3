"""Caption whole images, their boxes, or the regions of their box pairs."""
