"""The miniworld: a synthetic dataset of images, boxes, captions and scene graphs with exact ground
truth.
"""
