"""`sgpipe export --to label-studio`: tasks of Label Studio, and the configuration of their project."""

import base64
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from PIL import Image

from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, write_json
from sgpipe.images import open_header
from sgpipe.records import IMAGE_FIELDS, Box, Record, Relation, deduplicate
from sgpipe.sources.label_studio import CROWD, LOCAL_FILES

CONFIGURATION = "labeling_config.xml"
_UNHELD = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\$[\w\[\].{}]")
# What a task has of its image: error rows have none.
_TASK_FIELDS = tuple(name for name in IMAGE_FIELDS if name != "status")
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
    Studio serves local files below the parent of the image folders.

    Raises:
        UserError: these are not folders.
    """
    options = rows.options
    prefixes = dict.fromkeys(rows.splits, options.images_url or "")
    if options.images_url is None and not options.embed:
        prefixes = _local_prefixes(rows)
    for split, prefix in prefixes.items():
        images = rows.records_with_images(split, "objects", "captions", "relations")
        tasks = (_label_studio_task(rows, record, content, prefix) for record, content in images)
        write_json(out / f"{split}.json", tasks)
    classes, predicates = rows.names
    text = _CONFIGURATION.format(
        classes=_tags("Label", classes), predicates=_tags("Relation", predicates)
    )
    (out / CONFIGURATION).write_text(text, encoding="utf-8")


def _local_prefixes(rows: ExportRows) -> dict[str, str]:
    """Return what addresses begin with where Label Studio serves the image folders, and note how.

    Raises:
        UserError: the images are not in folders.
    """
    folders: dict[str, str] = {}
    for split in rows.splits:
        folders[split] = os.path.abspath(rows.image_folder(split, "--embed or --images-url"))
    root = os.path.commonpath(list(map(os.path.dirname, folders.values())))
    rows.note = (
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and"
        f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add"
        f" {' and '.join(sorted(set(folders.values())))} to the project as a source storage of"
        " local files"
    )
    prefixes: dict[str, str] = {}
    for split, folder in folders.items():
        prefixes[split] = f"{LOCAL_FILES}?d={quote(os.path.relpath(folder, root))}/"
    return prefixes


def _tags(tag: str, names: Iterable[str]) -> str:
    return "\n".join(f"    <{tag} value={quoteattr(name)}/>" for name in names if _is_name(name))


def _is_name(name: str) -> bool:
    """Return whether Label Studio keeps a name of a class or a predicate."""
    return bool(name.strip()) and not _UNHELD.search(name)


def _label_studio_task(
    rows: ExportRows, record: Record, content: bytes | None, prefix: str
) -> dict[str, object]:
    data: dict[str, object] = {"image": _address(rows, record, content, prefix)}
    for key in _TASK_FIELDS:
        data[key] = getattr(record, key)
    captions = [caption.text for caption in record.captions if caption.scope == "image"]
    rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(captions)
    if captions:
        data["captions"] = captions
    usable = [_is_name(box.category) and not box.is_nothing for box in record.objects]
    indices = rows.renumber(record, usable)
    relations = _relations(rows, record, indices)
    boxes = [record.objects[index] for index in indices]
    numbers = _class_numbers(rows, boxes)
    if any(numbers.values()):
        data["category_ids"] = numbers
    return {"data": data, "predictions": [_prediction(rows, record, boxes, relations)]}


def _prediction(
    rows: ExportRows, record: Record, boxes: Sequence[Box], relations: Sequence[Relation]
) -> dict[str, object]:
    """Return the objects and relations of an image; its score is their mean confidence."""
    run = rows.manifest.run
    version = f"{run.get('name', 'sgpipe')} {run.get('fingerprint', '')[:12]}".strip()
    prediction: dict[str, object] = {"model_version": version}
    confidences = [item.confidence for item in relations if item.confidence is not None]
    if confidences:
        prediction["score"] = sum(confidences) / len(confidences)
    regions = [_region(record, box, number) for number, box in enumerate(boxes)]
    prediction["result"] = [*regions, *_links(relations)]
    return prediction


def _address(rows: ExportRows, record: Record, content: bytes | None, prefix: str) -> str:
    """Return the address of an image, which contains the image if it is embedded."""
    if content is not None:
        with rows.unreadable_left_out(), open_header(BytesIO(content), record.file_name) as image:
            kind = Image.MIME[image.format or ""]
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    if prefix.startswith(("/", "http:", "https:")):
        return prefix + quote(record.file_name)
    return prefix + record.file_name


def _relations(rows: ExportRows, record: Record, indices: dict[int, int]) -> list[Relation]:
    """Return the relations that Label Studio keeps; of repeated ones, the most confident."""
    chosen = rows.relations(record, indices)
    relations = [item for item in deduplicate(chosen) if _is_name(item.predicate)]
    rows.left_out["relations that the format cannot hold"] += len(chosen) - len(relations)
    return relations


def _class_numbers(rows: ExportRows, boxes: Iterable[Box]) -> dict[str, int]:
    """Return the numbers of the classes of an image, one for each name."""
    numbers: dict[str, int] = {}
    for box in boxes:
        if numbers.setdefault(box.category, box.category_id) != box.category_id:
            rows.left_out["class numbers that the format cannot hold"] += 1
    return numbers


def _region(record: Record, box: Box, number: int) -> dict[str, object]:
    """Return a rectangle, whose sides are in percent of the image."""
    x, y, width, height = box.bbox
    region: dict[str, object] = {
        "id": f"object{number}",
        "type": "rectanglelabels",
        "from_name": "objects",
        "to_name": "image",
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
        "value": {
            "x": 100 * x / record.width,
            "y": 100 * y / record.height,
            "width": 100 * width / record.width,
            "height": 100 * height / record.height,
            "rotation": 0,
            "rectanglelabels": [box.category],
        },
    }
    if box.score is not None:
        region["score"] = box.score
    if box.iscrowd:
        region["meta"] = {"text": [CROWD]}
    return region


def _links(relations: Iterable[Relation]) -> Iterator[dict[str, object]]:
    """Yield one link for each pair of rectangles: the editor drops a second one."""
    pairs: dict[tuple[int, int], list[Relation]] = {}
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    for (subject, object_), of_pair in pairs.items():
        link: dict[str, object] = {
            "type": "relation",
            "from_id": f"object{subject}",
            "to_id": f"object{object_}",
            "direction": "right",
            "labels": [relation.predicate for relation in of_pair],
        }
        scores = [relation.confidence for relation in of_pair]
        if any(score is not None for score in scores):
            link["scores"] = scores
        yield link


LABEL_STUDIO = Format(
    "label-studio",
    write_label_studio,
    keeps=("captions",),
    options=("embed", "images", "images-url"),
)
