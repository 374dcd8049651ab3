"""`sgpipe export --to fiftyone`: a dataset of FiftyOne."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import add_filename
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json
from sgpipe.records import Record, deduplicate
from sgpipe.utils.boxes import xywh_to_xyxy

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
    **{
        "filepath": "String",
        "tags": "List/String",
        "created_at": "DateTime",
        "last_modified_at": "DateTime",
    },
    **dict.fromkeys(("image_id", "split", "run"), "String"),
    **{
        "captions": "List/String",
        "_media_type": "String",
        "_rand": "Float",
        "_dataset_id": "ObjectId",
    },
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

    def samples() -> Iterator[dict[str, Any]]:
        for split in rows.splits:
            if not rows.options.embed:
                rows.image_folder(split)
            for record, content in rows.records_with_images(
                split, "objects", "captions", "relations"
            ):
                own = _oid(split, record.image_id)
                path = f"{_MEDIA}/{own['$oid']}{PurePosixPath(record.file_name).suffix}"
                if content is not None:
                    with add_filename(out / path):
                        (out / path).write_bytes(content)
                elif rows.options.embed or (found := rows.image_path(record)) is None:
                    continue
                else:
                    path = os.path.abspath(found)
                yield {
                    **{"_id": own, "filepath": path, "tags": [split], "_media_type": "image"},
                    "_rand": int(own["$oid"][:8], 16) / 2**32,
                    "metadata": {
                        "_cls": "ImageMetadata",
                        "width": record.width,
                        "height": record.height,
                    },
                    **{
                        "image_id": record.image_id,
                        "split": split,
                        "run": rows.manifest.run.get("fingerprint", ""),
                    },
                    "captions": [caption.text for caption in record.captions],
                    **{
                        name: {"_cls": "Detections", "detections": of}
                        for name, of in _labels(rows, record).items()
                    },
                }

    write_json(out / "samples.json", Members([("samples", samples())]))
    rows.note = (
        "fiftyone.Dataset.from_dir(FOLDER, dataset_type=fiftyone.types.FiftyOneDataset) reads it"
    )


def _field(
    name: str, kind: str, document: str | None = None, fields: list[dict[str, Any]] | None = None
) -> Any:
    """Return the description of a field; `kind`: "Float", "List/Float" and so on."""
    outer, _, inner = (
        f"fiftyone.core.fields.{part}Field" if part else None for part in kind.partition("/")
    )
    document = document and f"fiftyone.core.{document}"
    described = {
        "name": name,
        "db_field": "_id" if name == "id" else name,
        "ftype": outer,
        "subfield": inner,
    }
    return described | {"embedded_doc_type": document, "fields": fields or []}


def _oid(*address: object) -> dict[str, str]:
    """Return the id of a sample or a label: the same in all exports of all runs of these images."""
    return {"$oid": hashlib.sha256(repr(address).encode()).hexdigest()[:24]}


def _labels(rows: ExportRows, record: Record) -> dict[str, list[dict[str, Any]]]:
    """Return the detections of the objects and of the relations; boxes are xywh, as shares of the
    image's sides.
    """
    where = (record.split, record.image_id)
    kept = rows.renumber(record, [not box.is_nothing for box in record.objects])
    boxes = np.array([box.bbox for box in record.objects], float).reshape(-1, 4)
    corners = xywh_to_xyxy(boxes / ((record.width, record.height) * 2))

    def label(
        name: str, xyxy: NDArray[np.float64], score: float | None, *address: object, **more: object
    ) -> Any:
        box = {
            "bounding_box": [*xyxy[:2].tolist(), *(xyxy[2:] - xyxy[:2]).tolist()],
            "confidence": score,
        }
        own = {
            "_id": _oid(*where, *address),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": name,
        }
        return own | box | more

    objects = []
    relations = []
    for index in kept:
        box = record.objects[index]
        own = {"index": index, "origin": box.origin, "iscrowd": box.iscrowd}
        objects.append(label(box.category, corners[index], box.score, index, **own))
    for relation in deduplicate(rows.relations(record, {index: index for index in kept})):
        ends = {"subject": relation.subject, "object": relation.object}
        both = corners[[*ends.values()]]
        around = np.concatenate([both[:, :2].min(0), both[:, 2:].max(0)])
        subject, object_ = (record.objects[end].category for end in ends.values())
        more: dict[str, object] = {name: _oid(*where, end)["$oid"] for name, end in ends.items()}
        more |= {f"{name}_index": end for name, end in ends.items()}
        more |= {
            "predicate": relation.predicate,
            "text": f"{subject} {relation.predicate} {object_}",
        }
        address = relation.subject, relation.predicate, relation.object
        made = label(
            relation.predicate,
            around,
            relation.confidence,
            *address,
            **more,
            origin=relation.origin,
        )
        relations.append(made)
    return {"objects": objects, "relations": relations}


FIFTYONE = Format("fiftyone", write_fiftyone, keeps=("captions",), options=("embed", "images"))
