"""Training pairs of the R-Tagger: pairs with relations, and pairs without."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from rlip_model.training.annotations import SceneTargets
from rlip_model.training.sampling import LabelledTriplets


def tagger_triplets(
    targets: SceneTargets,
    width: float,
    height: float,
    max_pairs: int,
    rng: random.Random,
    *,
    related_first: bool = False,
) -> LabelledTriplets:
    """Make triplets of related pairs and of other pairs of the image, up to `max_pairs`.

    If there are more, pairs are drawn at random; related pairs take precedence. Triplets of other
    pairs have a row of zeros for relations. Of a judged image there are only judged pairs. Missing
    objects cannot be given to the R-Tagger and are in no pair.

    Args:
        width, height: of the image, in pixels.
        max_pairs: the network's number of query pairs.
        related_first: the published order, related pairs first. Every slot of the network has its
            own query, so from this order the network learns that pairs in the last slots have no
            relations, which is wrong in inference.
    """
    targets = targets.keep(~targets.missing)
    related, labels = targets.related()
    drawn = _draw(len(related), max_pairs, rng)
    negatives = unrelated(len(targets.boxes), related) if targets.right is None else related[:0]
    negatives = negatives[_draw(len(negatives), max_pairs - len(drawn), rng)]
    pairs = torch.cat((related[drawn], negatives))
    labels = torch.cat((labels[drawn], labels.new_zeros(len(negatives), labels.shape[1])))
    if not related_first:
        order = rng.sample(range(len(pairs)), len(pairs))
        pairs = pairs[order]
        labels = labels[order]
    return targets.triplets(pairs, labels, width, height)


def unrelated(objects: int, related: Tensor) -> Tensor:
    """`[pairs, 2]`: all ordered pairs of different objects that are not in `related` `[pairs,
    2]`.
    """
    free = ~torch.eye(objects, dtype=torch.bool)
    free[related[:, 0], related[:, 1]] = False
    return free.nonzero()


def _draw(count: int, limit: int, rng: random.Random) -> Tensor:
    """Draw up to `limit` of the numbers below `count`, in ascending order."""
    return torch.tensor(sorted(rng.sample(range(count), min(count, limit))), dtype=torch.long)
