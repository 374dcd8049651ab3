"""sgpipe: turn an object-detection dataset into a scene-graph dataset, and train RLIPv2 on it."""

__version__ = "0.1.0"
