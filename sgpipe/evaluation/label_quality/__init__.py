"""Relations of a run compared with ground truth."""
