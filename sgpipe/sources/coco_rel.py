"""COCO instances with a file of relation triplets, as RelTR keeps Visual Genome and Open Images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.records import Record, Relation
from sgpipe.sources.annotated import AnnotationSource, ClassLists, ProblemCounts, fail
from sgpipe.sources.fields import FieldError, clean, line, numbers
from sgpipe.sources.forms import COCO_INSTANCES, RELATION_TRIPLETS, require
from sgpipe.sources.instances import Instances, load_instances
from sgpipe.sources.json_stream import JsonStream

NO_RELATION = "__background__"  # RelTR's first relation category


@dataclass(frozen=True)
class CocoRelations:
    """Where the instances and the relations lie.

    Attributes:
        relations: rel.json, `{split: {image id: [[subject, object, relation], ...]}, "rel_categories": [names]}`.
            Subject and object count the image's boxes in the order of the instances file, without crowds.
        split: which of the relations' splits the instances belong to.
    """

    annotations: Path
    relations: Path
    split: str

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or another than it should be."""
        require(self.annotations, COCO_INSTANCES)
        require(self.relations, RELATION_TRIPLETS)
        names, _ = self._triplets
        used = tuple(name for name in names if name != NO_RELATION)
        return AnnotationSource(
            dataset="coco_rel",
            split=self.split,
            read=self.records,
            files={"annotations": self.annotations, "relations": self.relations},
            classes=ClassLists(tuple(name for _, name in sorted(self._instances.names.items())), used),
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """The images in file order; those without relations, too."""
        names, triplets = self._triplets
        instances = self._instances
        problems.update(instances.problems)
        problems["unlisted_images"] += len(triplets.keys() - instances.images.keys())
        for number in instances.images:
            record = instances.record(number, "coco_rel", self.split)
            places = [index for index, box in enumerate(record.objects) if not box.iscrowd]
            try:
                if record.ok:
                    record.relations = _relations(triplets.get(number, []), names, places)
            except FieldError as error:
                fail(record, str(error))
            yield record

    @cached_property
    def _instances(self) -> Instances:
        return load_instances(self.annotations)

    @cached_property
    def _triplets(self) -> tuple[list[str], Mapping[str, Any]]:
        """The relations' names, and those of the split by image id."""
        stream = JsonStream(self.relations)
        names = [clean(str(item)) for key, item in stream if key == "rel_categories"]
        splits = {key: value for key, value in stream.scalars.items() if isinstance(value, dict)}
        if self.split not in splits:
            there = " or ".join(map(line, sorted(splits))) or "NAME"
            raise UserError(f"{self.relations} has no split {self.split!r}: say --split {there}")
        return names, splits[self.split]


def _relations(triplets: Any, names: list[str], places: list[int]) -> list[Relation]:
    """`places`: where the objects that the triplets count are."""
    relations = []
    for triplet in triplets if isinstance(triplets, list) else [triplets]:
        subject, object_, label = numbers(triplet, 3)
        if subject not in range(len(places)) or object_ not in range(len(places)):
            raise FieldError(f"relation {triplet} points to none of {len(places)} objects")
        if label not in range(len(names)) or names[int(label)] == NO_RELATION:
            raise FieldError(f"label {label:g} of a relation is none of the file's rel_categories")
        relations.append(Relation(places[int(subject)], places[int(object_)], names[int(label)]))
    return relations
