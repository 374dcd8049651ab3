"""What a run lacks of what its source had, by kind: how much, of how much, and whether that is
worth a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sgpipe.records import LEFT_OUT
from sgpipe.storage.header import RunHeader

NOTEWORTHY = 0.05  # a larger share of what there was is a note and a finding
PROBLEM = "problem."  # prefix of what the shards of an import count of its source
# What sources count besides, of which nothing is lost.
SOURCE_REMARKS = {
    "clipped": "boxes clipped to their image",
    "crowd": "crowd boxes, which get no pairs",
    "other_splits": "tasks of other splits",
}
_ROW_LOSSES = {
    "boxes": "boxes",
    "captions": "captions",
    "regions": "regions",
    "words": "words",
    "grounded": "boxes of words",
    "pairs": "pairs",
    "marks": "marks",
    "answers": "answers",
}
# what is lost of them is still counted among what is kept
_PARTS = frozenset({"marks", "segmentations", "triplets"})

_NEAREST = {  # what is counted in place of these
    "annotations": ("boxes", "relations", "captions"),
    "segmentations": ("boxes",),
    "marks": ("boxes",),
    "regions": ("captions",),
    "words": ("grounded",),
    "boxes of words": ("grounded",),
    "answers": ("images",),
}


@dataclass(frozen=True)
class LossKind:
    """A kind of loss.

    Attributes:
        of: what is lost, and what its share is of; see `_kept`.
        text: what is lost, in words, in the plural.
        is_fault: it is an error in the data, not a choice such as a limit.
        is_noted: it is worth a note however small its share is.
    """

    of: str
    text: str
    is_fault: bool = False
    is_noted: bool = False


SOURCE_LOSSES = {
    "not_finite": LossKind(
        "boxes", "boxes with NaN or infinite coordinates", is_fault=True, is_noted=True
    ),
    "degenerate": LossKind("boxes", "boxes without area", is_fault=True),
    "unknown_category": LossKind("boxes", "boxes of categories that are not listed", is_fault=True),
    "unknown_image": LossKind("boxes", "boxes of images that are not listed", is_fault=True),
    "unsized_image": LossKind("boxes", "boxes of images without a size", is_fault=True),
    "duplicate_boxes": LossKind("boxes", "boxes that repeat another"),
    "segmentations": LossKind(
        "segmentations",
        "segmentations that are neither polygons nor run lengths of the image",
        is_fault=True,
    ),
    "duplicate_images": LossKind("images", "images whose id another one has", is_fault=True),
    "unlisted_images": LossKind(
        "images", "images with relations that are not listed", is_fault=True
    ),
    "skipped_tasks": LossKind("images", "tasks whose annotations were all cancelled"),
    "unannotated_tasks": LossKind("images", "tasks without annotations"),
    "unread_files": LossKind("images", "files that are not images"),
    "unlisted_captions": LossKind(
        "captions", "captions of images that are not listed", is_fault=True
    ),
    "compositions": LossKind("captions", "captions of groups of objects"),
    "unknown_object": LossKind(
        "relations", "relations of objects that do not exist", is_fault=True
    ),
    "relations_of_dropped_boxes": LossKind(
        "relations", "relations of boxes that are lost", is_fault=True
    ),
    "repeated_relations": LossKind("relations", "relations that repeat another"),
    "redundant_relations": LossKind(
        "relations", "relations of a pair that has them in other words"
    ),
    "relations_beyond_100": LossKind(
        "relations", "relations beyond the 100 that RLIPv2 takes of an image"
    ),
    "ignored_relations": LossKind("relations", "relations, which `sgpipe import coco-rel` reads"),
    "malformed": LossKind("annotations", "unreadable annotations", is_fault=True),
    "nameless": LossKind("annotations", "objects and relations without a name", is_fault=True),
    "other_results": LossKind(
        "annotations", "annotations that are no rectangles with labels, nor relations"
    ),
    "further_labels": LossKind("boxes", "further labels of boxes"),
    "further_annotations": LossKind("images", "further annotations of images"),
    "further_predictions": LossKind("images", "further predictions for images"),
}
_UNMATCHED = LossKind("triplets", "triplets without a box for each end")


@dataclass(frozen=True)
class Loss:
    """How much of a kind is lost, of how much."""

    kind: LossKind
    lost: int
    total: int

    @property
    def share(self) -> float:
        return self.lost / self.total if self.total else 0.0

    @property
    def is_noteworthy(self) -> bool:
        return self.share > NOTEWORTHY or self.kind.is_noted

    def __str__(self) -> str:
        share = f"{self.share:.0%}" if self.share >= 0.01 else "less than 1%"
        return f"lost {self.lost:,} of {self.total:,} {self.kind.of} ({share}): {self.kind.text}"


def losses_of(run: RunHeader, counts: Mapping[str, int]) -> list[Loss]:
    """Return all losses of a run.

    Args:
        run: the header of its manifest.
        counts: what its shards count, in sum.
    """
    in_shards = {
        name.removeprefix(PROBLEM): number
        for name, number in counts.items()
        if name.startswith(PROBLEM)
    }
    problems = run.get("source_problems") or in_shards
    source = run.get("source_counts") or counts
    lost = [
        (SOURCE_LOSSES[name], number) for name, number in problems.items() if name in SOURCE_LOSSES
    ]
    return [*_with_totals(lost, source), *_with_totals(list(_lost_in_rows(counts)), counts)]


def _lost_in_rows(counts: Mapping[str, int]) -> Iterator[tuple[LossKind, int]]:
    """Yield what the stages left out."""
    for name, row_loss in _ROW_LOSSES.items():
        yield LossKind(row_loss, LEFT_OUT[name]), counts.get(f"{name}_left_out", 0)
    yield _UNMATCHED, counts.get("triplets", 0) - counts.get("matched_triplets", 0)


def _with_totals(lost: list[tuple[LossKind, int]], counts: Mapping[str, int]) -> list[Loss]:
    all_lost = Counter[str]()
    for kind, number in lost:
        if kind.of not in _PARTS:
            all_lost[kind.of] += number
    return [
        Loss(kind, number, _kept(kind.of, counts) + all_lost[kind.of])
        for kind, number in lost
        if number > 0
    ]


def _kept(lost: str, counts: Mapping[str, int]) -> int:
    """Return how many the run has of what is lost, or of what comes nearest to it."""
    return sum(counts.get(name, 0) for name in _NEAREST.get(lost, (lost,)))
