"""`sgpipe export --to vg`: scene graphs in the format of Visual Genome."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from sgpipe.export.fields import confidence_field, image_fields
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, plain, write_json
from sgpipe.records import Record


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
) -> dict[str, Any]:
    """Return the objects and relations of an image, without crowds and without blank names, which
    readers drop.
    """
    indices = rows.renumber(
        record, [not box.iscrowd and bool(box.category.strip()) for box in record.objects]
    )
    things = []
    for box in (record.objects[index] for index in indices):
        sides = dict(zip("xywh", map(plain, box.bbox), strict=True))
        attributes = (
            list(dict.fromkeys(attribute.name for attribute in box.attributes)) if as_vg else []
        )
        things.append(
            {"object_id": next(ids[0]), **sides, "names": [box.category] if as_vg else box.category}
        )
        things[-1] |= {"attributes": attributes} if attributes else {}
    relationships = []
    for relation in rows.relations(record, indices):
        if not relation.predicate.strip():
            rows.left_out["relations that the format cannot hold"] += 1
            continue
        subject, object_ = (things[end]["object_id"] for end in (relation.subject, relation.object))
        item = {"relationship_id": next(ids[1]), "predicate": relation.predicate}
        relationships.append(
            {**item, "subject_id": subject, "object_id": object_, **confidence_field(relation)}
        )
    return {"objects": things, "relationships": relationships}


VISUAL_GENOME = Format("vg", write_visual_genome)
