"""Runs for annotation tools: tasks of Label Studio with predictions, and datasets of FiftyOne (docs.voxel51.com).

In FiftyOne a relation is a detection, too, around its subject and its object, so that its App shows, filters and tags
it; `sgpipe.storage.judgements` reads these tags.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgpipe.errors import add_filename
from sgpipe.export.rows import IMAGE_FIELDS, ExportRows, Members, write_json
from sgpipe.images import open_header
from sgpipe.records import Record, Relation, deduplicate
from sgpipe.sources.label_studio import CROWD, LOCAL_FILES
from sgpipe.utils.boxes import xywh_to_xyxy

_VERSION = "1.0.0"  # of FiftyOne, whose form this is; later ones read it
_MEDIA = "data"
_LABELS = {"tags": "List/String", "label": "String", "bounding_box": "List/Float", "confidence": "Float"}
_OBJECTS = _LABELS | {"index": "Int", "origin": "String", "iscrowd": "Boolean"}
_ENDS = {"subject": "String", "object": "String", "subject_index": "Int", "object_index": "Int"}
_RELATIONS = _LABELS | _ENDS | dict.fromkeys(("predicate", "text", "origin"), "String")
_SAMPLE = {
    **{"filepath": "String", "tags": "List/String", "created_at": "DateTime", "last_modified_at": "DateTime"},
    **dict.fromkeys(("image_id", "split", "run"), "String"),
    **{"captions": "List/String", "_media_type": "String", "_rand": "Float", "_dataset_id": "ObjectId"},
}


def write_fiftyone(rows: ExportRows, out: Path) -> None:
    """Write metadata.json and samples.json, and `data` with images that are embedded, as those in a store must be."""
    fields = [_field("id", "ObjectId"), *(_field(name, kind) for name, kind in _SAMPLE.items())]
    sizes = [_field(side, "Int") for side in ("width", "height")]
    fields.append(_field("metadata", "EmbeddedDocument", "metadata.ImageMetadata", sizes))
    for name, kinds in (("objects", _OBJECTS), ("relations", _RELATIONS)):
        inner = [_field("id", "ObjectId"), *(_field(key, kind) for key, kind in kinds.items())]
        listed = _field("detections", "List/EmbeddedDocument", "labels.Detection", inner)
        fields.append(_field(name, "EmbeddedDocument", "labels.Detections", [listed]))
    metadata = {"version": _VERSION, "name": "sgpipe", "media_type": "image", "sample_fields": fields}
    write_json(out / "metadata.json", Members([*metadata.items(), ("info", rows.identity)]))
    if rows.embed:
        (out / _MEDIA).mkdir()

    def samples() -> Iterator[dict[str, Any]]:
        for split in rows.splits:
            if not rows.embed:
                rows.image_folder(split)
            for record, content in rows.records_with_images(split, "objects", "captions", "relations"):
                own = _oid(split, record.image_id)
                path = f"{_MEDIA}/{own['$oid']}{PurePosixPath(record.file_name).suffix}"
                if content is not None:
                    with add_filename(out / path):
                        (out / path).write_bytes(content)
                elif rows.embed or (found := rows.image_path(record)) is None:
                    continue
                else:
                    path = os.path.abspath(found)
                yield {
                    **{"_id": own, "filepath": path, "tags": [split], "_media_type": "image"},
                    "_rand": int(own["$oid"][:8], 16) / 2**32,
                    "metadata": {"_cls": "ImageMetadata", "width": record.width, "height": record.height},
                    **{"image_id": record.image_id, "split": split, "run": rows.manifest.run.get("fingerprint", "")},
                    "captions": [caption.text for caption in record.captions],
                    **{name: {"_cls": "Detections", "detections": of} for name, of in _labels(rows, record).items()},
                }

    write_json(out / "samples.json", Members([("samples", samples())]))
    rows.note = "fiftyone.Dataset.from_dir(FOLDER, dataset_type=fiftyone.types.FiftyOneDataset) reads it"


def _field(name: str, kind: str, document: str | None = None, fields: list[dict[str, Any]] | None = None) -> Any:
    """Return the description of a field; `kind`: "Float", "List/Float" and so on."""
    outer, _, inner = (f"fiftyone.core.fields.{part}Field" if part else None for part in kind.partition("/"))
    document = document and f"fiftyone.core.{document}"
    described = {"name": name, "db_field": "_id" if name == "id" else name, "ftype": outer, "subfield": inner}
    return described | {"embedded_doc_type": document, "fields": fields or []}


def _oid(*address: object) -> dict[str, str]:
    """Return the id of a sample or a label: the same in all exports of all runs of these images."""
    return {"$oid": hashlib.sha256(repr(address).encode()).hexdigest()[:24]}


def _labels(rows: ExportRows, record: Record) -> dict[str, list[dict[str, Any]]]:
    """Return the detections of the objects and of the relations; boxes are xywh, as shares of the image's sides."""
    where, kept = (record.split, record.image_id), rows.renumber(record, [not box.is_nothing for box in record.objects])
    boxes = np.array([box.bbox for box in record.objects], float).reshape(-1, 4)
    corners = xywh_to_xyxy(boxes / ((record.width, record.height) * 2))

    def label(name: str, xyxy: NDArray[np.float64], score: float | None, *address: object, **more: object) -> Any:
        box = {"bounding_box": [*xyxy[:2].tolist(), *(xyxy[2:] - xyxy[:2]).tolist()], "confidence": score}
        own = {"_id": _oid(*where, *address), "_cls": "Detection", "attributes": {}, "tags": [], "label": name}
        return own | box | more

    objects, relations = [], []
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
        more |= {"predicate": relation.predicate, "text": f"{subject} {relation.predicate} {object_}"}
        address = relation.subject, relation.predicate, relation.object
        made = label(relation.predicate, around, relation.confidence, *address, **more, origin=relation.origin)
        relations.append(made)
    return {"objects": objects, "relations": relations}


CONFIGURATION = "labeling_config.xml"

# What a name in the configuration cannot contain: characters that XML forbids, and variables, which are replaced.
_UNHELD = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\$[\w\[\].{}]")
_CONFIGURATION = """\
<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <RectangleLabels name="objects" toName="image">
{classes}
  </RectangleLabels>
  <Relations choice="multiple">
{predicates}
  </Relations>
</View>
"""


def write_label_studio(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json, a list of tasks, and the labelling configuration of a project for them.

    Images that are not embedded have addresses that begin with `images_url`, or at which Label Studio serves local
    files below the parent of the image folders. Raises UserError: these are not folders.
    """
    prefixes = dict.fromkeys(rows.splits, rows.images_url)
    if rows.images_url is None and not rows.embed:
        options = "--embed or --images-url"
        folders = {split: os.path.abspath(rows.image_folder(split, options)) for split in rows.splits}
        root = os.path.commonpath([os.path.dirname(folder) for folder in folders.values()])
        rows.note = (
            f"start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add {' and '.join(sorted(set(folders.values())))} "
            "to the project as a source storage of local files"
        )
        for split, folder in folders.items():
            prefixes[split] = f"{LOCAL_FILES}?d={quote(os.path.relpath(folder, root))}/"
    for split, prefix in prefixes.items():
        found = rows.records_with_images(split, "objects", "captions", "relations")
        write_json(out / f"{split}.json", (_task(rows, *each, prefix or "") for each in found))
    classes, predicates = rows.names
    text = _CONFIGURATION.format(classes=_tags("Label", classes), predicates=_tags("Relation", predicates))
    (out / CONFIGURATION).write_text(text, encoding="utf-8")


def _tags(tag: str, names: Iterable[str]) -> str:
    return "\n".join(f"    <{tag} value={quoteattr(name)}/>" for name in names if _is_name(name))


def _is_name(name: str) -> bool:
    """Return whether Label Studio keeps a name of a class or a predicate."""
    return bool(name.strip()) and not _UNHELD.search(name)


def _task(rows: ExportRows, record: Record, content: bytes | None, prefix: str) -> dict[str, Any]:
    address = prefix + (quote(record.file_name) if prefix.startswith(("/", "http:", "https:")) else record.file_name)
    if content is not None:
        with rows.unreadable_left_out(), open_header(BytesIO(content), record.file_name) as image:
            kind = Image.MIME[image.format or ""]
            address = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    data: dict[str, Any] = {"image": address, **{key: getattr(record, key) for key in IMAGE_FIELDS[:-1]}}
    captions = [caption.text for caption in record.captions if caption.scope == "image"]
    rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(captions)
    indices = rows.renumber(record, [_is_name(box.category) and not box.is_nothing for box in record.objects])
    kept = rows.relations(record, indices)
    relations = [item for item in deduplicate(kept) if _is_name(item.predicate)]  # of repeated ones, the most confident
    rows.left_out["relations that the format cannot hold"] += len(kept) - len(relations)
    numbers: dict[str, int] = {}  # of the classes: one for each name
    for box in (record.objects[index] for index in indices):
        if numbers.setdefault(box.category, box.category_id) != box.category_id:
            rows.left_out["class numbers that the format cannot hold"] += 1
    data |= {"captions": captions} if captions else {}
    data |= {"category_ids": numbers} if any(numbers.values()) else {}
    run = rows.manifest.run
    version = f"{run.get('name', 'sgpipe')} {run.get('fingerprint', '')[:12]}".strip()
    prediction: dict[str, Any] = {"model_version": version}
    if known := [item.confidence for item in relations if item.confidence is not None]:
        prediction["score"] = sum(known) / len(known)
    results: list[dict[str, Any]] = []
    for index, number in indices.items():
        box = record.objects[index]
        sides = zip(("x", "y", "width", "height"), box.bbox, (record.width, record.height) * 2, strict=True)
        value: dict[str, Any] = {key: 100 * length / side for key, length, side in sides}  # percent of the image
        region: dict[str, Any] = {
            **{"id": f"object{number}", "type": "rectanglelabels", "from_name": "objects", "to_name": "image"},
            **{"original_width": record.width, "original_height": record.height, "image_rotation": 0},
            "value": value | {"rotation": 0, "rectanglelabels": [box.category]},
        }
        region |= {} if box.score is None else {"score": box.score}
        results.append(region | ({"meta": {"text": [CROWD]}} if box.iscrowd else {}))
    pairs: dict[tuple[int, int], list[Relation]] = {}  # one link for each: the editor drops a second one
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    for (subject, object_), stated in pairs.items():
        link: dict[str, Any] = {"type": "relation", "from_id": f"object{subject}", "to_id": f"object{object_}"}
        link |= {"direction": "right", "labels": [relation.predicate for relation in stated]}
        scores = [relation.confidence for relation in stated]
        results.append(link if all(score is None for score in scores) else link | {"scores": scores})
    return {"data": data, "predictions": [prediction | {"result": results}]}
