"""Images with boxes and interactions: V-COCO's, with COCO's other boxes, and HICO-DET's.

The line form has a JSON object for each image: image_id, width, height, boxes (pixel xyxy),
classes, and relations (subject, actions, object). `join_instances` adds what COCO annotates
besides.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT, Box, Record
from sgpipe.sources.coco import coco_source
from sgpipe.sources.hoi import vcoco_source
from sgpipe.sources.vocabulary import official_relation_names
from sgpipe.stages.tag.layout import ImageLayout
from sgpipe.stages.tag.layout.fit import LayoutExample
from sgpipe.stages.tag.layout.scene import IntArray
from sgpipe.utils.boxes import iou
from sgpipe.utils.console import count

PERSON = "person"
SPLITS = ("train.jsonl.gz", "val.jsonl.gz")  # files of the line form that are trained on
SAME_BOX = 0.5  # IoU from which a box of V-COCO is one of COCO's instances
# IoU from which two boxes of a class, annotated with different pairs, are of the same thing
MERGED = 0.7
TEST_IMAGES = Path(__file__).parent / "vcoco_test.ids"  # those of vcoco_captions are among them

# V-COCO's actions as words.
ACTIONS = {
    "carry obj": "carry",
    "catch obj": "catch",
    "cut instr": "cut with",
    "cut obj": "cut",
    "drink instr": "drink",
    "eat instr": "eat with",
    "eat obj": "eat",
    "hit instr": "hit with",
    "hit obj": "hit",
    "hold obj": "hold",
    "jump instr": "jump on",
    "kick obj": "kick",
    "lay instr": "lie on",
    "look obj": "look at",
    "read obj": "read",
    "ride instr": "ride",
    "sit instr": "sit on",
    "skateboard instr": "skateboard on",
    "ski instr": "ski on",
    "snowboard instr": "snowboard on",
    "surf instr": "surf on",
    "talk_on_phone instr": "talk on",
    "throw obj": "throw",
    "work_on_computer instr": "work on",
}


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with its interactions: (subject, actions as words, object), positions among the
    boxes.
    """

    image_id: int
    layout: ImageLayout
    relations: Sequence[tuple[int, Sequence[str], int]]

    @property
    def example(self) -> LayoutExample:
        return LayoutExample(self.layout, self.relations)

    def pairs(self) -> IntArray:
        """Return `[pairs, 2]`: every person with every other box."""
        persons = [index for index, name in enumerate(self.layout.classes) if name == PERSON]
        boxes = range(len(self.layout.classes))
        pairs = [(person, box) for person in persons for box in boxes if box != person]
        return np.array(pairs, np.int64).reshape(-1, 2)


def read_lines(path: Path) -> list[AnnotatedImage]:
    """Read a file in the line form, compressed or not.

    Raises:
        UserError: the file is missing or a line is of another form
    """
    opened = gzip.open if path.suffix == ".gz" else open
    images = []
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                images.append(_image(json.loads(line)))
    except (OSError, EOFError) as reason:
        raise UserError(f"{path} cannot be read: {reason}") from None
    except (ValueError, KeyError, TypeError) as reason:
        place = f"{path}, line {len(images) + 1}"
        raise UserError(
            f"{place}: expected image_id, width, height, boxes, classes, relations ({reason!r})"
        ) from None
    return images


def _image(row: dict[str, Any]) -> AnnotatedImage:
    boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
    layout = ImageLayout(boxes, row["classes"], row["width"], row["height"])
    relations = []
    for subject, actions, thing in row["relations"]:
        relations.append((subject, [ACTIONS[action] for action in actions], thing))
    return AnnotatedImage(row["image_id"], layout, relations)


def read_vcoco(annotations: Path, instances: Mapping[int, ImageLayout]) -> list[AnnotatedImage]:
    """Read V-COCO's pairs in any format of `sgpipe import vcoco`, with the other persons of the
    image.

    Args:
        annotations: the file
        instances: the images of COCO, by id, of which V-COCO's file lacks the size and other
            persons

    Raises:
        UserError: the annotations are of another format, or of other images than the instances
    """
    words = _words()
    images = []
    for record in vcoco_source(annotations, "train").read(Counter()):
        if not record.ok or not record.relations:
            continue
        number = int(record.image_id)
        if number not in instances:
            raise UserError(f"image {number} of {annotations} is missing in the COCO instances")
        actions: dict[tuple[int, int], list[str]] = defaultdict(list)
        for relation in record.relations:
            if (
                relation.predicate in words
                and record.objects[relation.object].category != NO_OBJECT
            ):
                actions[relation.subject, relation.object].append(words[relation.predicate])
        layout = layout_of(record.objects, instances[number].width, instances[number].height)
        relations = [
            (subject, predicates, thing) for (subject, thing), predicates in actions.items()
        ]
        image = AnnotatedImage(number, layout, relations)
        images.append(join_instances(image, _persons(instances[number])))
    return images


def _persons(layout: ImageLayout) -> ImageLayout:
    """Return the persons of an image."""
    chosen = [index for index, name in enumerate(layout.classes) if name == PERSON]
    return replace(layout, boxes=layout.boxes[chosen], classes=[PERSON] * len(chosen))


def _words() -> dict[str, str]:
    """Return the word of each of V-COCO's actions by sgpipe's name of it."""
    names = official_relation_names("vcoco")
    return {names[official.replace(" ", "_")]: word for official, word in ACTIONS.items()}


def read_instances(path: Path) -> dict[int, ImageLayout]:
    """Read COCO's instances, without crowds, by the id of the image."""
    records = coco_source(path, "train").read(Counter())
    return {int(record.image_id): _without_crowds(record) for record in records if record.ok}


def _without_crowds(record: Record) -> ImageLayout:
    objects = [box for box in record.objects if not box.iscrowd]
    return layout_of(objects, record.width, record.height)


def layout_of(objects: Sequence[Box], width: float, height: float) -> ImageLayout:
    """Return the objects of a record as arrays."""
    boxes = np.array([box.bbox for box in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return ImageLayout(boxes, [box.category for box in objects], width, height)


def join_instances(image: AnnotatedImage, instances: ImageLayout) -> AnnotatedImage:
    """Add the instances that are not boxes of the image yet: things that nobody touches, and other
    persons.
    """
    layout = image.layout
    first = np.repeat(layout.boxes, len(instances.boxes), axis=0)
    second = np.tile(instances.boxes, (len(layout.boxes), 1))
    overlaps = iou(first, second).reshape(len(layout.boxes), len(instances.boxes))
    same_class = np.equal.outer(
        np.array(layout.classes, object), np.array(instances.classes, object)
    )
    is_new = np.where(same_class, overlaps, 0).max(axis=0, initial=0) <= SAME_BOX
    boxes = np.concatenate([layout.boxes, instances.boxes[is_new]])
    classes = [*layout.classes, *compress(instances.classes, is_new.tolist())]
    return replace(image, layout=replace(layout, boxes=boxes, classes=classes))


def refuse_test_images(images: Sequence[AnnotatedImage], place: Path) -> None:
    """Raise UserError if some images are of V-COCO's test set; those of vcoco_captions are."""
    test = frozenset(map(int, TEST_IMAGES.read_text(encoding="utf-8").split()))
    forbidden = [image.image_id for image in images if image.image_id in test]
    if forbidden:
        raise UserError(
            f"{place} has {count(len(forbidden), 'image')} of V-COCO's test set, such as"
            f" {forbidden[0]}: train on its train and val splits only"
        )


def read_hico(path: Path) -> list[AnnotatedImage]:
    """Read HICO-DET's pairs; boxes of a class that overlap are one, as their pairs were annotated
    one by one.

    A relation's predicates are HICO-DET's verbs; "no_interaction" is one of them.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    objects = [name.replace("_", " ") for name in content["objects"]]
    images = []
    for number, (item, (width, height)) in enumerate(
        zip(content["annotation"], content["size"], strict=True)
    ):
        boxes = Merged()
        relations: dict[tuple[int, int], list[str]] = defaultdict(list)
        columns = (item["boxes_h"], item["boxes_o"], item["object"], item["verb"])
        for person, thing, kind, verb in zip(*columns, strict=True):
            pair = boxes.add(PERSON, person), boxes.add(objects[kind], thing)
            relations[pair].append(content["verbs"][verb])
        layout = ImageLayout(
            np.array(boxes.boxes, np.float32).reshape(-1, 4), boxes.classes, width, height
        )
        rows = [(subject, verbs, thing) for (subject, thing), verbs in relations.items()]
        images.append(AnnotatedImage(number, layout, rows))
    return images


class Merged:
    """Boxes of an image, of which those of a class that overlap much are one."""

    def __init__(self) -> None:
        self.boxes: list[Sequence[float]] = []
        self.classes: list[str] = []

    def add(self, name: str, box: Sequence[float]) -> int:
        """Return the position of a box, which is added unless it is known."""
        for position, (known, other) in enumerate(zip(self.boxes, self.classes, strict=True)):
            if other == name and overlap(known, box) > MERGED:
                return position
        self.boxes.append(box)
        self.classes.append(name)
        return len(self.boxes) - 1


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the intersection over union of two xyxy boxes."""
    return float(iou(np.array([first]), np.array([second]))[0])
