"""The pairs that the R-Tagger learns from: those with relations, and others, without any."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from rlip_model.training.annotations import SceneTargets
from rlip_model.training.sampling import LabelledTriplets


def tagger_triplets(
    targets: SceneTargets, width: float, height: float, most: int, rng: random.Random, *, related_first: bool = False
) -> LabelledTriplets:
    """Triplets of the pairs that have relations and of other pairs of the picture, as many as there is room for.

    Where not all have room, as many as have are drawn: related pairs go before others. Triplets of other pairs have
    a row of zeros for relations. Missing objects cannot be given to the R-Tagger and take part in no pair.

    Args:
        width, height: of the picture, in pixels.
        most: pairs that the network has queries for.
        related_first: the published order, then the others. As every slot of the network has a query of its own, it
            learns from that order that pairs in the last slots have no relations, which is not so when it is used.
    """
    targets = targets.keep(~targets.missing)
    related, labels = targets.related()
    drawn = _draw(len(related), most, rng)
    others = unrelated(len(targets.boxes), related)
    others = others[_draw(len(others), most - len(drawn), rng)]
    pairs = torch.cat((related[drawn], others))
    labels = torch.cat((labels[drawn], labels.new_zeros(len(others), labels.shape[1])))
    if not related_first:
        order = rng.sample(range(len(pairs)), len(pairs))
        pairs, labels = pairs[order], labels[order]
    return targets.triplets(pairs, labels, width, height)


def unrelated(objects: int, related: Tensor) -> Tensor:
    """`[pairs, 2]`: all ordered pairs of two different objects that are not among `related` `[pairs, 2]`."""
    free = ~torch.eye(objects, dtype=torch.bool)
    free[related[:, 0], related[:, 1]] = False
    return free.nonzero()


def _draw(count: int, most: int, rng: random.Random) -> Tensor:
    """Up to `most` of the numbers below `count`, in order."""
    return torch.tensor(sorted(rng.sample(range(count), min(count, most))), dtype=torch.long)
