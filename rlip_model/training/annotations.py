"""Convert scene-graph annotations, from Visual Genome or the R-Tagger, to training targets.

The steps: swap left and right in texts if the image will be flipped (`with_flipped_texts`), clip
boxes and number the texts (`label_scene`), augment the image and its `SceneTargets` (`augment`),
then make triplets (`labelled_triplets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import box_convert

from rlip_model.targets import Triplets
from rlip_model.training.flip_text import flip_text
from rlip_model.training.sampling import LabelledTriplets

# with a box of zeros; stands in for the object of a relation without one (V-COCO)
MISSING_OBJECT = "missing objects"


class AnnotationError(ValueError):
    """An annotation is incomplete or inconsistent; the message names the image."""


@dataclass(frozen=True)
class SceneObject:
    """One object. box: x and y of the upper left corner, width, height, in pixels of the original
    image.
    """

    object_id: int
    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class SceneRelation:
    """One relation. confidence: from the R-Tagger; None for relations annotated by people. origin:
    who stated it.

    right: False if people judged that it does not hold.
    """

    subject_id: int
    object_id: int
    predicate: str
    confidence: float | None = None
    origin: str = "annotated"
    right: bool = True


@dataclass(frozen=True)
class SceneAnnotation:
    """The objects of an image and the relations between them.

    judged: only the relations that are listed are known, to be right or not; otherwise no others
    hold.
    """

    image_id: int | str
    objects: tuple[SceneObject, ...]
    relations: tuple[SceneRelation, ...]
    judged: bool = False

    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the objects, and the predicates."""
        names = tuple(item.name for item in self.objects)
        return names, tuple(item.predicate for item in self.relations)

    def with_flipped_texts(self) -> SceneAnnotation:
        """Swap left and right in all texts, as for a flipped image. `SceneTargets.flipped` flips
        the boxes.
        """
        return replace(
            self,
            objects=tuple(replace(item, name=flip_text(item.name)) for item in self.objects),
            relations=tuple(
                replace(item, predicate=flip_text(item.predicate)) for item in self.relations
            ),
        )


@dataclass(frozen=True)
class SceneTargets:
    """A scene graph as tensors, to be augmented together with its image.

    boxes `[objects, 4]` pixel xyxy; labels `[objects]`, indices into object_texts; relations
    `[relations, 3]`: subject and object, indices into boxes, and predicate, index into
    relation_texts. right `[relations]`: whether those of a judged image hold; None: it is not one.
    The box of a missing object is, and remains, zeros.
    """

    boxes: Tensor
    labels: Tensor
    relations: Tensor
    object_texts: tuple[str, ...]
    relation_texts: tuple[str, ...]
    right: Tensor | None = None

    @property
    def unstated(self) -> float:
        """The label of a relation that is not listed: 0, it does not hold, or NaN, nobody judged
        it.
        """
        return 0.0 if self.right is None else torch.nan

    @property
    def missing(self) -> Tensor:
        """`[objects]`: True for placeholders of missing objects."""
        named = torch.tensor(
            [text == MISSING_OBJECT for text in self.object_texts], dtype=torch.bool
        )
        return named[self.labels] & (self.boxes == 0).all(1)

    def keep(self, mask: Tensor) -> SceneTargets:
        """Keep the objects where `mask` `[objects]` is True, and the relations between them. All
        texts stay.
        """
        renumbered = mask.cumsum(0) - 1
        inside = mask[self.relations[:, :2]].all(1)
        relations = self.relations[inside]
        return replace(
            self,
            boxes=self.boxes[mask],
            labels=self.labels[mask],
            relations=torch.cat((renumbered[relations[:, :2]], relations[:, 2:]), dim=1),
            right=None if self.right is None else self.right[inside],
        )

    def clamped(self, width: float, height: float) -> SceneTargets:
        """Clip boxes to the image, and drop objects outside it."""
        limits = self.boxes.new_tensor((width, height, width, height))
        boxes = self.boxes.clamp(min=0).minimum(limits)
        return replace(self, boxes=boxes).keep((boxes[:, 2:] > boxes[:, :2]).all(1) | self.missing)

    def resized(self, horizontal: float, vertical: float) -> SceneTargets:
        """Multiply boxes by these factors."""
        return replace(self, boxes=self.boxes * self.boxes.new_tensor((horizontal, vertical) * 2))

    def shifted(self, right: float, down: float) -> SceneTargets:
        """Move boxes by these numbers of pixels."""
        return self._moved(self.boxes + self.boxes.new_tensor((right, down) * 2))

    def flipped(self, width: float) -> SceneTargets:
        """Flip boxes horizontally in an image of this width, in pixels; see
        `SceneAnnotation.with_flipped_texts`.
        """
        left, top, right, bottom = self.boxes.unbind(1)
        return self._moved(torch.stack((width - right, top, width - left, bottom), dim=1))

    def _moved(self, boxes: Tensor) -> SceneTargets:
        return replace(self, boxes=boxes.masked_fill(self.missing.unsqueeze(1), 0))

    def related(self) -> tuple[Tensor, Tensor]:
        """Return the distinct pairs `[pairs, 2]` with relations, and these `[pairs,
        relation_texts]`, 0, 1 or `unstated`.
        """
        rows: dict[tuple[int, int], int] = {}  # of the pairs
        relation_rows = []
        for subject, object_, _ in self.relations.tolist():
            relation_rows.append(rows.setdefault((subject, object_), len(rows)))
        labels = torch.full((len(rows), len(self.relation_texts)), self.unstated)
        entries = torch.tensor(relation_rows, dtype=torch.long), self.relations[:, 2]
        labels[entries] = torch.tensor(1.0) if self.right is None else self.right
        return torch.tensor(list(rows), dtype=torch.long).reshape(-1, 2), labels

    def triplets(
        self, pairs: Tensor, relation_labels: Tensor, width: float, height: float
    ) -> LabelledTriplets:
        """Make triplets of the given pairs `[pairs, 2]`, with normalised cxcywh boxes.

        Args:
            relation_labels: `[pairs, relation_texts]`, 0 or 1.
            width, height: of the image, in pixels.
        """
        subjects, objects = pairs.unbind(1)
        boxes = box_convert(self.boxes, "xyxy", "cxcywh")
        boxes = boxes / boxes.new_tensor((width, height, width, height))
        triplets = Triplets(
            boxes[subjects],
            boxes[objects],
            self.labels[subjects],
            self.labels[objects],
            relation_labels,
        )
        return LabelledTriplets(triplets, self.object_texts, self.relation_texts, self.unstated)

    def boxes_and_labels(
        self, width: float, height: float, texts: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Return all objects but missing ones: boxes `[objects, 4]` normalised cxcywh, and labels
        that index `texts`.
        """
        present = ~self.missing
        boxes = box_convert(self.boxes[present], "xyxy", "cxcywh")
        places = torch.tensor([texts.index(text) for text in self.object_texts], dtype=torch.long)
        return (
            boxes / boxes.new_tensor((width, height, width, height)),
            places[self.labels[present]],
        )

    def labelled_triplets(
        self, width: float, height: float, max_triplets: int | None = None
    ) -> LabelledTriplets:
        """Return the target triplets in an image of this size; relations of the same two objects
        become one triplet.

        Args:
            max_triplets: only the first ones are used; the network's number of query pairs. None:
                all.
        """
        pairs, labels = self.related()
        return self.triplets(pairs[:max_triplets], labels[:max_triplets], width, height)


def label_scene(
    graph: SceneAnnotation, width: int, height: int, most_relations: int
) -> SceneTargets:
    """Number the texts of a scene graph in order of appearance, and clip boxes to the image.

    Args:
        width, height: of the original image, in pixels.
        most_relations: maximum number of relations, the first ones; the network's number of query
            pairs.

    Raises:
        AnnotationError: a relation refers to an object that does not exist.
    """
    relations = graph.relations[:most_relations]
    object_texts = tuple(dict.fromkeys(item.name for item in graph.objects))
    relation_texts = tuple(dict.fromkeys(item.predicate for item in relations))
    boxes = torch.tensor([item.box for item in graph.objects], dtype=torch.float32).reshape(-1, 4)
    labels = [object_texts.index(item.name) for item in graph.objects]
    positions = {item.object_id: position for position, item in enumerate(graph.objects)}
    try:
        numbered = [
            (
                positions[item.subject_id],
                positions[item.object_id],
                relation_texts.index(item.predicate),
            )
            for item in relations
        ]
    except KeyError as unknown:
        raise AnnotationError(
            f"scene graph of image {graph.image_id}: a relation refers to unknown object {unknown}"
        ) from None
    targets = SceneTargets(
        box_convert(boxes, "xywh", "xyxy"),
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(numbered, dtype=torch.long).reshape(-1, 3),
        object_texts,
        relation_texts,
        torch.tensor([float(item.right) for item in relations]) if graph.judged else None,
    )
    return targets.clamped(width, height)
