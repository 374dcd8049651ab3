"""The `Judge` protocol: an image and relations in, the probability that each is correct out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from sgpipe.records import Box, Relation


@dataclass(frozen=True)
class Unjudged:
    """Why a judge says nothing about a relation."""

    reason: str


NO_AREA = Unjudged("a box has no area in the image")


class Judge(Protocol):
    """Judges relations by what the image shows.

    The probability of a relation depends on the image, its two boxes and its predicate only: never on the other
    relations that are judged, on their number or their order.
    """

    def check(self) -> None:
        """Cheap, before any work. Raises UserError: this judge cannot judge, as far as can be told."""

    def load(self) -> None:
        """Load what is needed, in the process that judges. Raises UserError: as `check`, and damaged weights."""

    def probabilities(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> list[float | Unjudged]:
        """How probable each relation is, in their order; confidences are not read.

        Args:
            image: RGB.
            objects: its boxes, xywh in pixels of the image; the relations index them.

        Raises UserError, EngineError: the judge fails on every image.
        """
        ...
