"""Label photographs by their captions and boxes, with methods that look at no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sgpipe.recipe import PairConfig, TagConfig
from sgpipe.records import Record
from sgpipe.stages.layout_pair import LayoutPairStage
from sgpipe.stages.pair import PairStage
from sgpipe.stages.tag.layout.evidence import CaptionEvidence
from sgpipe.stages.tag.layout.stage import LayoutStage
from sgpipe.stages.tag.methods import AssumedStage

Candidates = Literal["captions", "image", "captions+layout", "layout"]
Method = Literal["all", "overlap", "layout"]
LEAST = 0.01  # confidence that the layout model's relations keep


def label(
    parsed: Sequence[Record],
    classes: Sequence[str],
    captions: int,
    candidates: Candidates,
    method: Method,
    *,
    loose: bool = True,
    evidence: Sequence[CaptionEvidence] = (),
) -> list[Record]:
    """Label images by their first captions and the triplets of these.

    Args:
        evidence: with the method layout, how captions count in each image; none: as beside the
            weights
    """
    config = PairConfig(candidates=candidates, loose=loose)
    paired = pair_images(parsed, classes, captions, config)
    if method != "layout":
        return AssumedStage(TagConfig(method=method))(paired)
    by_image: Sequence[CaptionEvidence | None] = evidence or [None] * len(paired)
    for used in set(by_image):
        stage = LayoutStage(TagConfig(method="layout", threshold=LEAST), config, used)
        stage.setup()
        stage(
            [
                record
                for record, image_texts in zip(paired, by_image, strict=True)
                if image_texts == used
            ]
        )
    return paired


def pair_images(
    parsed: Sequence[Record], classes: Sequence[str], captions: int, config: PairConfig
) -> list[Record]:
    """Return the images with candidates by their first captions."""
    stage = (LayoutPairStage if config.layout else PairStage)(config, "coco", classes)
    stage.setup()
    first = [
        replace(
            record,
            captions=record.captions[:captions],
            triplets=[
                replace(triplet) for triplet in record.triplets if triplet.caption < captions
            ],
            relations=[],
            mentions=None,
            left_out={},
        )
        for record in parsed
    ]
    return stage(first)


def confident(labelled: Sequence[Record], confidence: float) -> list[Record]:
    """Return images with the relations of at least this confidence."""
    return [
        replace(
            record,
            relations=[one for one in record.relations if (one.confidence or 0) >= confidence],
        )
        for record in labelled
    ]
