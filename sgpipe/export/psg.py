"""`sgpipe export --to psg`: panoptic scene graphs."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sgpipe.export.fields import corners, unique_id
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, as_number, plain, write_json
from sgpipe.recipe import WHOLE
from sgpipe.records import Box, Record
from sgpipe.sources.annotated import base_split
from sgpipe.sources.psg import STUFF
from sgpipe.storage.manifest import Manifest

_Entry: TypeAlias = dict[str, object]
_Mask: TypeAlias = NDArray[np.bool_]


def write_psg(rows: ExportRows, out: Path) -> None:
    """Write psg.json, and panoptic_SPLIT/NUMBER.png of images with segmentations; test images: not
    of train or all.
    """
    stuff_of_sources: set[str] = set()
    for identity in Manifest.identities(rows.manifest.run):
        stuff_of_sources.update(identity.get("options", {}).get(STUFF, ()))
    names, predicates = rows.names
    things = [name for name in names if name not in stuff_of_sources]
    stuff = [name for name in names if name in stuff_of_sources]
    graphs = _Graphs(
        rows=rows,
        out=out,
        stuff=stuff,
        classes=_indices(things + stuff),
        predicates=_indices(predicates),
    )
    for split in rows.splits:
        (out / f"panoptic_{split}").mkdir()
    members = [
        ("data", graphs.items()),
        ("thing_classes", things),
        (STUFF, stuff),
        ("predicate_classes", predicates),
        ("test_image_ids", iter(graphs.test_images)),
    ]
    write_json(out / "psg.json", Members(members))


def _indices(names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, range(len(names)), strict=True))


@dataclass
class _Graphs:
    """The panoptic scene graphs of a run.

    Attributes:
        stuff: classes that are not things.
        classes, predicates: indices by name.
        test_images: ids of the images that were yielded and are not of train or all.
    """

    rows: ExportRows
    out: Path
    stuff: Collection[str]
    classes: Mapping[str, int]
    predicates: Mapping[str, int]
    test_images: list[int | str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def items(self) -> Iterator[_Entry]:
        for split in self.rows.splits:
            for number, record in enumerate(self.rows.records(split, "objects", "relations")):
                yield self._item(record, f"panoptic_{split}/{number:08d}.png")

    def _item(self, record: Record, png: str) -> _Entry:
        """Return a scene graph, after writing the panoptic PNG if it has segmentations."""
        indices = self.rows.renumber(record, [not box.is_nothing for box in record.objects])
        boxes = [record.objects[index] for index in indices]
        masks = [_mask_of(box, record) for box in boxes]
        if any(mask is not None for mask in masks):
            _write_panoptic(self.out / png, record, masks)
        elif boxes:
            self.rows.left_out["panoptic PNGs of images without segmentations"] += 1
        image_id = as_number(unique_id(record, self._seen))
        if base_split(record.split) not in ("train", WHOLE):
            self.test_images.append(image_id)
        relations = []
        for relation in self.rows.relations(record, indices):
            predicate = self.predicates[relation.predicate]
            relations.append([relation.subject, relation.object, predicate])
        return {
            "file_name": record.file_name,
            "height": record.height,
            "width": record.width,
            "image_id": image_id,
            "split": record.split,
            "pan_seg_file_name": png,
            "segments_info": list(map(self._segment, range(1, len(boxes) + 1), boxes, masks)),
            "annotations": list(map(self._annotation, boxes, masks)),
            "relations": relations,
        }

    def _segment(self, number: int, box: Box, mask: _Mask | None) -> _Entry:
        area = plain(box.bbox[2] * box.bbox[3]) if mask is None else int(mask.sum())
        return {
            "id": number,
            "category_id": self.classes[box.category],
            "iscrowd": int(box.iscrowd),
            "isthing": int(box.category not in self.stuff),
            "area": area,
        }

    def _annotation(self, box: Box, mask: _Mask | None) -> _Entry:
        annotation: _Entry = {"category_id": self.classes[box.category], "bbox": corners(box)}
        if mask is not None:
            annotation["segmentation"] = json.loads(str(box.segmentation))
        return annotation


def _write_panoptic(path: Path, record: Record, masks: Sequence[_Mask | None]) -> None:
    """Write the number of the segment of each pixel as a colour; the smallest one is on top."""
    numbered = [(number, mask) for number, mask in enumerate(masks, 1) if mask is not None]
    numbered.sort(key=lambda item: -int(item[1].sum()))
    pixels = np.zeros((record.height, record.width), np.uint32)
    for number, mask in numbered:
        pixels[mask] = number
    colours = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16], -1).astype(np.uint8)
    Image.fromarray(colours).save(path)


def _mask_of(box: Box, record: Record) -> _Mask | None:
    """Return the pixels of a box's polygons or run lengths, `[height, width]`.

    None: it has none, or some of another size.
    """
    from pycocotools import mask as coco

    outline = json.loads(box.segmentation) if box.segmentation else None
    if not outline:
        return None
    size = record.height, record.width
    if isinstance(outline, list):
        inside = [np.clip(polygon, 0, max(size)).tolist() for polygon in outline]
        run_lengths = coco.merge(coco.frPyObjects(inside, *size))
    elif tuple(outline["size"]) != size:
        return None
    elif isinstance(outline["counts"], list):
        run_lengths = coco.frPyObjects(outline, *size)
    else:
        run_lengths = outline
    mask: _Mask = coco.decode(run_lengths) != 0
    return mask


PSG = Format("psg", write_psg)
