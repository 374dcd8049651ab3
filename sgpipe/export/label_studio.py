"""`sgpipe export --to label-studio`: tasks of Label Studio, and the configuration of their project."""

import base64
import os
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from PIL import Image

from sgpipe.export.formats import Format
from sgpipe.export.rows import IMAGE_FIELDS, ExportRows, write_json
from sgpipe.images import open_header
from sgpipe.records import Record, Relation, deduplicate
from sgpipe.sources.label_studio import CROWD, LOCAL_FILES

CONFIGURATION = "labeling_config.xml"
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

    Images that are not embedded have addresses that begin with `images_url`, or at which Label
    Studio serves local files below the parent of the image folders. Raises UserError: these are not
    folders.
    """
    prefixes = dict.fromkeys(rows.splits, rows.options.images_url)
    if rows.options.images_url is None and not rows.options.embed:
        options = "--embed or --images-url"
        folders = {
            split: os.path.abspath(rows.image_folder(split, options)) for split in rows.splits
        }
        root = os.path.commonpath([os.path.dirname(folder) for folder in folders.values()])
        rows.note = (
            "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"
            f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add"
            f" {' and '.join(sorted(set(folders.values())))} to the project as a source storage of"
            " local files"
        )
        for split, folder in folders.items():
            prefixes[split] = f"{LOCAL_FILES}?d={quote(os.path.relpath(folder, root))}/"
    for split, prefix in prefixes.items():
        found = rows.records_with_images(split, "objects", "captions", "relations")
        write_json(out / f"{split}.json", (_task(rows, *each, prefix or "") for each in found))
    classes, predicates = rows.names
    text = _CONFIGURATION.format(
        classes=_tags("Label", classes), predicates=_tags("Relation", predicates)
    )
    (out / CONFIGURATION).write_text(text, encoding="utf-8")


def _tags(tag: str, names: Iterable[str]) -> str:
    return "\n".join(f"    <{tag} value={quoteattr(name)}/>" for name in names if _is_name(name))


def _is_name(name: str) -> bool:
    """Return whether Label Studio keeps a name of a class or a predicate."""
    return bool(name.strip()) and not _UNHELD.search(name)


def _task(rows: ExportRows, record: Record, content: bytes | None, prefix: str) -> dict[str, Any]:
    address = prefix + (
        quote(record.file_name) if prefix.startswith(("/", "http:", "https:")) else record.file_name
    )
    if content is not None:
        with rows.unreadable_left_out(), open_header(BytesIO(content), record.file_name) as image:
            kind = Image.MIME[image.format or ""]
            address = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    data: dict[str, Any] = {
        "image": address,
        **{key: getattr(record, key) for key in IMAGE_FIELDS[:-1]},
    }
    captions = [caption.text for caption in record.captions if caption.scope == "image"]
    rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(captions)
    indices = rows.renumber(
        record, [_is_name(box.category) and not box.is_nothing for box in record.objects]
    )
    kept = rows.relations(record, indices)
    relations = [
        item for item in deduplicate(kept) if _is_name(item.predicate)
    ]  # of repeated ones, the most confident
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
    known = [item.confidence for item in relations if item.confidence is not None]
    if known:
        prediction["score"] = sum(known) / len(known)
    results: list[dict[str, Any]] = []
    for index, number in indices.items():
        box = record.objects[index]
        sides = zip(
            ("x", "y", "width", "height"), box.bbox, (record.width, record.height) * 2, strict=True
        )
        value: dict[str, Any] = {
            key: 100 * length / side for key, length, side in sides
        }  # percent of the image
        region: dict[str, Any] = {
            **{
                "id": f"object{number}",
                "type": "rectanglelabels",
                "from_name": "objects",
                "to_name": "image",
            },
            **{
                "original_width": record.width,
                "original_height": record.height,
                "image_rotation": 0,
            },
            "value": value | {"rotation": 0, "rectanglelabels": [box.category]},
        }
        region |= {} if box.score is None else {"score": box.score}
        results.append(region | ({"meta": {"text": [CROWD]}} if box.iscrowd else {}))
    pairs: dict[
        tuple[int, int], list[Relation]
    ] = {}  # one link for each: the editor drops a second one
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    for (subject, object_), stated in pairs.items():
        link: dict[str, Any] = {
            "type": "relation",
            "from_id": f"object{subject}",
            "to_id": f"object{object_}",
        }
        link |= {"direction": "right", "labels": [relation.predicate for relation in stated]}
        scores = [relation.confidence for relation in stated]
        results.append(
            link if all(score is None for score in scores) else link | {"scores": scores}
        )
    return {"data": data, "predictions": [prediction | {"result": results}]}


LABEL_STUDIO = Format(
    "label-studio",
    write_label_studio,
    keeps=("captions",),
    options=("embed", "images", "images-url"),
)
