"""Tasks for Label Studio, with the boxes and relations of a run as predictions, and the labelling configuration."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.export.rows import IMAGE_FIELDS, ExportRows, write_json
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.roots import FolderRoot
from sgpipe.images import ImageError, open_header, read_image
from sgpipe.records import Record, Relation, deduplicate
from sgpipe.sources.label_studio import CROWD, LOCAL_FILES

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


def write_label_studio(
    rows: ExportRows, out: Path, images: ImagePlace | None = None, images_url: str | None = None, *, embed: bool = False
) -> None:
    """Write SPLIT.json, a list of tasks, and the labelling configuration of a project for them.

    `embed` puts the images into the tasks. Otherwise these have addresses that begin with `images_url`, or at which
    Label Studio serves local files below the parent of `images` or of the run's image folders.

    Raises UserError: the images are not in a folder.
    """
    prefixes = dict.fromkeys(rows.splits, images_url)
    if images_url is None and not embed:
        folders = {}
        for split in rows.splits:
            place = rows.manifest.image_root(split, images)
            if not isinstance(place, FolderRoot):  # Label Studio sees neither archives nor stores
                raise UserError(f"the images are in {place.location}, not in a folder: pass --embed or --images-url")
            folders[split] = os.path.abspath(place.folder)
        root = os.path.commonpath([os.path.dirname(folder) for folder in folders.values()])
        rows.note = (
            f"start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add {' and '.join(sorted(set(folders.values())))} "
            "to the project as a source storage of local files"
        )
        for split, folder in folders.items():
            prefixes[split] = f"{LOCAL_FILES}?d={quote(os.path.relpath(folder, root))}/"
    for split, prefix in prefixes.items():
        found = rows.records_with_images(split, "objects", "captions", "relations", embed=prefix is None)
        tasks = (_task(rows, record, _address(rows, record, content, images, prefix)) for record, content in found)
        write_json(out / f"{split}.json", tasks)
    names = rows.manifest.run.get("labels") or {"objects": [], "relations": []}
    classes = sorted({name for _, name in rows.census.categories - rows.census.nothing})
    text = _CONFIGURATION.format(
        classes=_tags("Label", [*names["objects"], *classes]),
        predicates=_tags("Relation", [*names["relations"], *sorted(rows.census.predicates)]),
    )
    (out / CONFIGURATION).write_text(text, encoding="utf-8")


def _tags(tag: str, names: Iterable[str]) -> str:
    return "\n".join(f"    <{tag} value={quoteattr(name)}/>" for name in dict.fromkeys(names) if _is_name(name))


def _is_name(name: str) -> bool:
    """Return whether Label Studio keeps a name of a class or a predicate."""
    return bool(name.strip()) and not _UNHELD.search(name)


def _task(rows: ExportRows, record: Record, address: str) -> dict[str, Any]:
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
    if scores := [item.confidence for item in relations if item.confidence is not None]:
        prediction["score"] = sum(scores) / len(scores)
    prediction["result"] = [_region(record, *pair) for pair in indices.items()] + list(_links(relations))
    return {"data": data, "predictions": [prediction]}


def _address(
    rows: ExportRows, record: Record, content: bytes | None, images: ImagePlace | None, prefix: str | None
) -> str:
    """Return the address of the image, or its content."""
    if prefix is not None:
        is_web = prefix.startswith(("/", "http:", "https:"))
        return prefix + (quote(record.file_name) if is_web else record.file_name)
    try:
        if content is None:
            content = read_image(rows.manifest.image_root(record.split, images), record)
        with open_header(BytesIO(content), record.file_name) as image:
            kind = Image.MIME[image.format or ""]
    except ImageError:
        rows.left_out["images that cannot be read"] += 1
        return record.file_name
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _region(record: Record, index: int, number: int) -> dict[str, Any]:
    """Return a box as a rectangle in percent of the image; `number`: its index among the exported objects."""
    box = record.objects[index]
    sides = zip(("x", "y", "width", "height"), box.bbox, (record.width, record.height) * 2, strict=True)
    value: dict[str, Any] = {key: 100 * length / side for key, length, side in sides}
    return {
        **{"id": f"object{number}", "type": "rectanglelabels", "from_name": "objects", "to_name": "image"},
        **{"original_width": record.width, "original_height": record.height, "image_rotation": 0},
        "value": value | {"rotation": 0, "rectanglelabels": [box.category]},
        **({} if box.score is None else {"score": box.score}),
        **({"meta": {"text": [CROWD]}} if box.iscrowd else {}),
    }


def _links(relations: Iterable[Relation]) -> Iterator[dict[str, Any]]:
    """Yield one link for all relations of a pair: Label Studio's editor drops a second one."""
    pairs: dict[tuple[int, int], list[Relation]] = {}
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    for (subject, object_), stated in pairs.items():
        link: dict[str, Any] = {"type": "relation", "from_id": f"object{subject}", "to_id": f"object{object_}"}
        link |= {"direction": "right", "labels": [relation.predicate for relation in stated]}
        scores = [relation.confidence for relation in stated]
        yield link if all(score is None for score in scores) else link | {"scores": scores}
