"""Tasks for Label Studio, with the boxes and relations of a run as predictions, and the labelling configuration."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from PIL import Image

from sgpipe.errors import UserError
from sgpipe.export.rows import IMAGE_FIELDS, ExportRows, iter_groups, write_json
from sgpipe.files.image_roots import ImagePlace, ImageRoot
from sgpipe.files.roots import FolderRoot
from sgpipe.images import ImageError, open_header, read_image
from sgpipe.records import BOX_SCORES, Box, Record, Relation, deduplicate, from_table
from sgpipe.sources.label_studio import CROWD, LOCAL_FILES
from sgpipe.storage.shards import IMAGE_COLUMN, embedded_images, open_shard

CONFIGURATION = "labeling_config.xml"

_NESTED = ("objects", "captions", "relations")
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
    rows: ExportRows,
    out: Path,
    images: ImagePlace | None = None,
    images_url: str | None = None,
    *,
    embed: bool = False,
) -> None:
    """Write SPLIT.json, a list of tasks, and the labelling configuration of a project for them.

    Args:
        images: folder of the images, if they have moved since the run. Tasks refer to them as Label Studio serves local
            files, below the parent of that folder.
        images_url: what the addresses of images begin with instead; the file name follows.
        embed: put the images into the tasks.

    Raises UserError: a shard cannot be read, or the image folder is unknown or missing and there is no `images_url`.
    """
    prefixes = dict.fromkeys(rows.splits, images_url)
    if images_url is None and not embed:
        roots = {split: rows.manifest.image_root(split, images) for split in rows.splits}
        prefixes |= _local_files(rows, {split: _folder(root) for split, root in roots.items()})
    for split in rows.splits:
        write_json(out / f"{split}.json", _Tasks(rows, split, images, prefixes[split]).tasks())
    names = rows.manifest.run.get("labels") or {"objects": [], "relations": []}
    classes = sorted({name for _, name in rows.census.categories - rows.census.nothing})
    text = _CONFIGURATION.format(
        classes=_tags("Label", [*names["objects"], *classes]),
        predicates=_tags("Relation", [*names["relations"], *sorted(rows.census.predicates)]),
    )
    (out / CONFIGURATION).write_text(text, encoding="utf-8")


def _folder(images: ImageRoot) -> Path:
    """Raises UserError: the images are in archives or a store, where Label Studio does not see them."""
    if not isinstance(images, FolderRoot):
        raise UserError(f"the images are in {images.location}, not in a folder: pass --embed or --images-url")
    return images.folder


def _tags(tag: str, names: Iterable[str]) -> str:
    return "\n".join(f"    <{tag} value={quoteattr(name)}/>" for name in dict.fromkeys(names) if _is_name(name))


def _is_name(name: str) -> bool:
    """Whether Label Studio keeps a name of a class or a predicate."""
    return bool(name.strip()) and not _UNHELD.search(name)


def _local_files(rows: ExportRows, folders: Mapping[str, Path]) -> dict[str, str]:
    """What the addresses of each split's images begin with; tells the user how to serve them."""
    places = {split: os.path.abspath(folder) for split, folder in folders.items()}
    root = os.path.commonpath([os.path.dirname(place) for place in places.values()])
    rows.say(
        f"start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add {' and '.join(sorted(set(places.values())))} "
        "to the project as a source storage of local files"
    )
    return {split: f"{LOCAL_FILES}?d={quote(os.path.relpath(place, root))}/" for split, place in places.items()}


class _Tasks:
    """The tasks of a split."""

    def __init__(self, rows: ExportRows, split: str, images: ImagePlace | None, prefix: str | None) -> None:
        """prefix: what the addresses of images begin with; None: the tasks contain the images."""
        self._rows = rows
        self._split = split
        self._images = images
        self._prefix = prefix
        run = rows.manifest.run
        self._model_version = f"{run.get('name', 'sgpipe')} {run.get('fingerprint', '')[:12]}".strip()

    def tasks(self) -> Iterator[dict[str, Any]]:
        for shard in self._rows.shards(self._split):
            path = self._rows.root / shard.file
            with open_shard(path) as file:
                present = [name for name in (BOX_SCORES, IMAGE_COLUMN) if name in file.schema_arrow.names]
            if self._prefix is not None:
                present = [name for name in present if name != IMAGE_COLUMN]
            for table in iter_groups(path, (*IMAGE_FIELDS, *_NESTED, *present)):
                contents = embedded_images(table)
                records = from_table(table.drop_columns(IMAGE_COLUMN) if IMAGE_COLUMN in present else table)
                yield from (self._task(*pair) for pair in zip(records, contents, strict=True) if pair[0].ok)

    def _task(self, record: Record, content: bytes | None) -> dict[str, Any]:
        data: dict[str, Any] = {
            "image": self._address(record, content),
            **{key: getattr(record, key) for key in IMAGE_FIELDS[:-1]},
        }
        captions = [caption.text for caption in record.captions if caption.scope == "image"]
        self._rows.left_out["captions that the format cannot hold"] += len(record.captions) - len(captions)
        usable = [_is_name(box.category) and not box.is_nothing for box in record.objects]
        indices = self._rows.renumber(record, usable)
        relations = self._relations(record, indices)
        numbers = self._category_ids([record.objects[index] for index in indices])
        data |= {key: value for key, value in (("captions", captions), ("category_ids", numbers)) if value}
        scores = [item.confidence for item in relations if item.confidence is not None]
        prediction: dict[str, Any] = {"model_version": self._model_version}
        if scores:
            prediction["score"] = sum(scores) / len(scores)
        prediction["result"] = [_region(record, *pair) for pair in indices.items()] + list(_links(relations))
        return {"data": data, "predictions": [prediction]}

    def _address(self, record: Record, content: bytes | None) -> str:
        """The address of the image, or its content."""
        if self._prefix is not None:
            web = self._prefix.startswith(("/", "http:", "https:"))
            return self._prefix + (quote(record.file_name) if web else record.file_name)
        try:
            if content is None:
                content = read_image(self._rows.manifest.image_root(record.split, self._images), record)
            with open_header(BytesIO(content), record.file_name) as image:
                kind = Image.MIME[image.format or ""]
        except ImageError:
            self._rows.left_out["images that cannot be read"] += 1
            return record.file_name
        return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

    def _relations(self, record: Record, indices: Mapping[int, int]) -> list[Relation]:
        """The relations to export, with new indices; of repeated ones, the most confident."""
        kept = self._rows.relations(record, dict(indices))
        held = [item for item in deduplicate(kept) if _is_name(item.predicate)]
        self._rows.left_out["relations that the format cannot hold"] += len(kept) - len(held)
        return held

    def _category_ids(self, boxes: Iterable[Box]) -> dict[str, int]:
        """The numbers of the classes, if the dataset has any: one for each name."""
        numbers: dict[str, int] = {}
        for box in boxes:
            if numbers.setdefault(box.category, box.category_id) != box.category_id:
                self._rows.left_out["class numbers that the format cannot hold"] += 1
        return numbers if any(numbers.values()) else {}


def _region(record: Record, index: int, number: int) -> dict[str, Any]:
    """A box as a rectangle in percent of the image; `number`: its index among the exported objects."""
    box = record.objects[index]
    sides = zip(("x", "y", "width", "height"), box.bbox, (record.width, record.height) * 2, strict=True)
    value: dict[str, Any] = {key: 100 * length / side for key, length, side in sides}
    region = {
        "id": f"object{number}",
        "type": "rectanglelabels",
        "from_name": "objects",
        "to_name": "image",
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
        "value": value | {"rotation": 0, "rectanglelabels": [box.category]},
    }
    if record.box_scores is not None:
        region["score"] = record.box_scores[index]
    return region | ({"meta": {"text": [CROWD]}} if box.iscrowd else {})


def _links(relations: Iterable[Relation]) -> Iterator[dict[str, Any]]:
    """One link for all relations of a pair: Label Studio's editor drops a second one."""
    pairs: dict[tuple[int, int], list[Relation]] = {}
    for relation in relations:
        pairs.setdefault((relation.subject, relation.object), []).append(relation)
    for (subject, object_), stated in pairs.items():
        link: dict[str, Any] = {
            "type": "relation",
            "from_id": f"object{subject}",
            "to_id": f"object{object_}",
            "direction": "right",
            "labels": [relation.predicate for relation in stated],
        }
        scores = [relation.confidence for relation in stated]
        yield link if all(score is None for score in scores) else link | {"scores": scores}
