"""Training: data preparation, the training loop, checkpoints and validation."""
