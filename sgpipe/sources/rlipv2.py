"""Relations in RLIPv2's own form: what its R-Tagger made of COCO and Objects365, with confidences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError
from sgpipe.images import is_there
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, fail
from sgpipe.sources.fields import clean
from sgpipe.sources.forms import PSEUDO_LABELS, SCENE_GRAPHS, require
from sgpipe.sources.json_stream import JsonStream
from sgpipe.sources.scene_graphs import drop_nameless, graph_record, iter_graphs


@dataclass(frozen=True)
class PseudoLabels:
    """Where pseudo-labels lie.

    Attributes:
        image_paths: Objects365's image_id_to_filepath.json; its pictures cannot be found by their ids.
    """

    annotations: Path
    images: Path
    split: str
    image_paths: Path | None = None

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or another than it should be."""
        require(self.annotations, PSEUDO_LABELS, SCENE_GRAPHS)
        files = {"annotations": self.annotations, "image_paths": self.image_paths}
        return AnnotationSource(
            dataset="rlipv2",
            split=self.split,
            read=self.records,
            files={role: path for role, path in files.items() if path},
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """The images in file order, their relations as they stand there."""
        paths = _image_paths(self.image_paths)
        for item in iter_graphs(self.annotations):
            dataset = clean(str(item.get("dataset") or "rlipv2")) if isinstance(item, Mapping) else ""
            record = graph_record(item, dataset, self.split, problems)
            if record is None:
                continue
            drop_nameless(record, problems)
            yield self._located(record, item, paths)

    def _located(self, record: Record, item: Mapping[str, Any], paths: Mapping[str, Any]) -> Record:
        """The record with the name of its picture, which follows from its dataset."""
        if "file_name" in item:
            return record
        if record.dataset in ("o365", "objects365"):
            if not paths:
                raise UserError(
                    f"{self.annotations}: image {record.image_id} is of Objects365, whose file names do not follow "
                    "from ids: give --image-paths image_id_to_filepath.json"
                )
            if record.image_id not in paths:
                return fail(record, f"{self.image_paths} has no path for the image")
            record.file_name = clean(paths[record.image_id])
        elif record.dataset.startswith("coco"):
            name, folder = f"{record.image_id:0>12}.jpg", clean(str(item.get("data_split") or "train2017"))
            record.file_name = next((n for n in (f"{folder}/{name}", name) if is_there(self.images, n)), name)
        return record


def _image_paths(path: Path | None) -> Mapping[str, Any]:
    """Raises UserError: the file is missing or not of the form {image id: path}."""
    if path is None:
        return {}
    stream = JsonStream(path)
    if any(True for _ in stream) or not all(isinstance(name, str) for name in stream.scalars.values()):
        raise UserError(f"{path} is not an image_id_to_filepath.json: expected an object of image ids and paths")
    return stream.scalars
