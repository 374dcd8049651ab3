"""`sgpipe export --to vg`: scene graphs in the format of Visual Genome."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from sgpipe.export.fields import confidence_field, image_fields
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, plain, write_json
from sgpipe.records import Box, Record


def write_visual_genome(rows: ExportRows, out: Path) -> None:
    """Write scene_graphs_SPLIT.json and image_data_SPLIT.json; each relation also has its
    confidence.
    """
    ids = count(1), count(1)
    for split in rows.splits:
        records = rows.records(split, "objects", "relations")
        graphs = (image_fields(record) | graph(rows, record, ids, as_vg=True) for record in records)
        write_json(out / f"scene_graphs_{split}.json", graphs)
        fields = map(image_fields, rows.records(split))
        images = ({key: image[key] for key in ("image_id", "width", "height")} for image in fields)
        write_json(out / f"image_data_{split}.json", images)


def graph(
    rows: ExportRows,
    record: Record,
    ids: tuple[Iterator[int], Iterator[int]],
    *,
    as_vg: bool = False,
) -> dict[str, object]:
    """Return the objects and relations of an image, without crowds and without blank names, which
    readers drop.

    Args:
        ids: of objects and of relations.
        as_vg: with attributes and a list of names, as Visual Genome has them.
    """
    usable = [not box.iscrowd and bool(box.category.strip()) for box in record.objects]
    indices = rows.renumber(record, usable)
    object_ids: list[int] = []
    objects: list[dict[str, object]] = []
    for index in indices:
        object_ids.append(next(ids[0]))
        objects.append(_object(record.objects[index], object_ids[-1], as_vg=as_vg))
    relationships: list[dict[str, object]] = []
    for relation in rows.relations(record, indices):
        if not relation.predicate.strip():
            rows.left_out["relations that the format cannot hold"] += 1
            continue
        relationship: dict[str, object] = {
            "relationship_id": next(ids[1]),
            "predicate": relation.predicate,
            "subject_id": object_ids[relation.subject],
            "object_id": object_ids[relation.object],
        }
        relationships.append(relationship | confidence_field(relation))
    return {"objects": objects, "relationships": relationships}


def _object(box: Box, object_id: int, *, as_vg: bool) -> dict[str, object]:
    sides = dict(zip("xywh", map(plain, box.bbox), strict=True))
    if not as_vg:
        return {"object_id": object_id, **sides, "names": box.category}
    thing: dict[str, object] = {"object_id": object_id, **sides, "names": [box.category]}
    attributes = dict.fromkeys(attribute.name for attribute in box.attributes)
    if attributes:
        thing["attributes"] = list(attributes)
    return thing


VISUAL_GENOME = Format("vg", write_visual_genome)
