"""`sgpipe export --to fiftyone`: a dataset of FiftyOne."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import add_filename
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json
from sgpipe.records import Record, Relation, deduplicate
from sgpipe.utils.boxes import xywh_to_xyxy

_Label: TypeAlias = dict[str, object]

_VERSION = "1.0.0"  # of FiftyOne (docs.voxel51.com), whose form this is; later ones read it
_MEDIA = "data"
_LABELS = {
    "tags": "List/String",
    "label": "String",
    "bounding_box": "List/Float",
    "confidence": "Float",
}
_OBJECTS = _LABELS | {"index": "Int", "origin": "String", "iscrowd": "Boolean"}
_ENDS = {"subject": "String", "object": "String", "subject_index": "Int", "object_index": "Int"}
_RELATIONS = _LABELS | _ENDS | dict.fromkeys(("predicate", "text", "origin"), "String")
_SAMPLE = {
    "filepath": "String",
    "tags": "List/String",
    "created_at": "DateTime",
    "last_modified_at": "DateTime",
    "image_id": "String",
    "split": "String",
    "run": "String",
    "captions": "List/String",
    "_media_type": "String",
    "_rand": "Float",
    "_dataset_id": "ObjectId",
}


def write_fiftyone(rows: ExportRows, out: Path) -> None:
    """Write metadata.json, samples.json, and `data` with embedded images; relations are detections
    around both ends.
    """
    fields = [_field("id", "ObjectId"), *(_field(name, kind) for name, kind in _SAMPLE.items())]
    sizes = [_field(side, "Int") for side in ("width", "height")]
    fields.append(_field("metadata", "EmbeddedDocument", "metadata.ImageMetadata", sizes))
    for name, kinds in (("objects", _OBJECTS), ("relations", _RELATIONS)):
        inner = [_field("id", "ObjectId"), *(_field(key, kind) for key, kind in kinds.items())]
        listed = _field("detections", "List/EmbeddedDocument", "labels.Detection", inner)
        fields.append(_field(name, "EmbeddedDocument", "labels.Detections", [listed]))
    metadata = {
        "version": _VERSION,
        "name": "sgpipe",
        "media_type": "image",
        "sample_fields": fields,
    }
    write_json(out / "metadata.json", Members([*metadata.items(), ("info", rows.identity)]))
    if rows.options.embed:
        (out / _MEDIA).mkdir()

    write_json(out / "samples.json", Members([("samples", _samples(rows, out))]))
    rows.note = (
        "fiftyone.Dataset.from_dir(FOLDER, dataset_type=fiftyone.types.FiftyOneDataset) reads it"
    )


def _samples(rows: ExportRows, out: Path) -> Iterator[dict[str, object]]:
    for split in rows.splits:
        if not rows.options.embed:
            rows.image_folder(split)
        for record, content in rows.records_with_images(split, "objects", "captions", "relations"):
            sample_id = _oid(split, record.image_id)
            path = _image_path(rows, out, record, content, sample_id["$oid"])
            if path is None:
                continue
            objects, relations = _labels(rows, record)
            yield {
                "_id": sample_id,
                "filepath": path,
                "tags": [split],
                "_media_type": "image",
                "_rand": int(sample_id["$oid"][:8], 16) / 2**32,
                "metadata": {
                    "_cls": "ImageMetadata",
                    "width": record.width,
                    "height": record.height,
                },
                "image_id": record.image_id,
                "split": split,
                "run": rows.manifest.run.get("fingerprint", ""),
                "captions": [caption.text for caption in record.captions],
                "objects": {"_cls": "Detections", "detections": objects},
                "relations": {"_cls": "Detections", "detections": relations},
            }


def _image_path(
    rows: ExportRows, out: Path, record: Record, content: bytes | None, name: str
) -> str | None:
    """Return where the image of a sample is, after writing it if it is embedded; None: it cannot be
    read.
    """
    if content is not None:
        path = f"{_MEDIA}/{name}{PurePosixPath(record.file_name).suffix}"
        with add_filename(out / path):
            (out / path).write_bytes(content)
        return path
    original = None if rows.options.embed else rows.image_path(record)
    return None if original is None else os.path.abspath(original)


def _field(
    name: str, kind: str, document: str | None = None, fields: list[dict[str, Any]] | None = None
) -> Any:
    """Return the description of a field; `kind`: "Float", "List/Float" and so on."""
    outer, _, inner = kind.partition("/")
    return {
        "name": name,
        "db_field": "_id" if name == "id" else name,
        "ftype": _field_class(outer),
        "subfield": _field_class(inner) if inner else None,
        "embedded_doc_type": document and f"fiftyone.core.{document}",
        "fields": fields or [],
    }


def _field_class(kind: str) -> str:
    return f"fiftyone.core.fields.{kind}Field"


def _oid(*address: object) -> dict[str, str]:
    """Return the id of a sample or a label: the same in all exports of all runs of these images."""
    return {"$oid": hashlib.sha256(repr(address).encode()).hexdigest()[:24]}


def _labels(rows: ExportRows, record: Record) -> tuple[list[_Label], list[_Label]]:
    """Return the detections of the objects and of the relations."""
    indices = list(rows.renumber(record, [not box.is_nothing for box in record.objects]))
    boxes = np.array([box.bbox for box in record.objects], float).reshape(-1, 4)
    corners = xywh_to_xyxy(boxes / ((record.width, record.height) * 2))
    objects = []
    for index in indices:
        box = record.objects[index]
        label = _label(record, (index,), box.category, corners[index], box.score)
        objects.append(label | {"index": index, "origin": box.origin, "iscrowd": box.iscrowd})
    same_indices = {index: index for index in indices}
    relations = []
    for relation in deduplicate(rows.relations(record, same_indices)):
        ends = corners[[relation.subject, relation.object]]
        around = np.concatenate([ends[:, :2].min(0), ends[:, 2:].max(0)])
        address = (relation.subject, relation.predicate, relation.object)
        label = _label(record, address, relation.predicate, around, relation.confidence)
        relations.append(label | _relation_fields(record, relation))
    return objects, relations


def _label(
    record: Record,
    address: tuple[object, ...],
    name: str,
    xyxy: NDArray[np.float64],
    score: float | None,
) -> _Label:
    """Return a detection, whose box is xywh, as shares of the image's sides.

    Args:
        address: what tells the label from others of its image.
    """
    corner = xyxy[:2]
    sides = xyxy[2:] - corner
    return {
        "_id": _oid(record.split, record.image_id, *address),
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": name,
        "bounding_box": [*corner.tolist(), *sides.tolist()],
        "confidence": score,
    }


def _relation_fields(record: Record, relation: Relation) -> _Label:
    subject = record.objects[relation.subject].category
    object_ = record.objects[relation.object].category
    return {
        "subject": _oid(record.split, record.image_id, relation.subject)["$oid"],
        "object": _oid(record.split, record.image_id, relation.object)["$oid"],
        "subject_index": relation.subject,
        "object_index": relation.object,
        "predicate": relation.predicate,
        "text": f"{subject} {relation.predicate} {object_}",
        "origin": relation.origin,
    }


FIFTYONE = Format("fiftyone", write_fiftyone, keeps=("captions",), options=("embed", "images"))
