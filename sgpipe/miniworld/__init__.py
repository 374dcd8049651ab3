"""A drawn world: pictures, boxes, captions and scene graphs with exact truth, and small models trained on it."""
