"""The layout model: which boxes of an image interact, and how, from the boxes and their classes
alone.

`scene` holds the boxes of images as arrays, `geometry` describes pairs of them in numbers, `model`
is the network in numpy, and `fit` trains it with PyTorch.
"""

from sgpipe.stages.tag.layout.model import LayoutModel, PairScores
from sgpipe.stages.tag.layout.scene import ImageLayout

__all__ = ["ImageLayout", "LayoutModel", "PairScores"]
