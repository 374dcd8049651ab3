"""`sgpipe export --to coco-rel`: COCO instances with RelTR's triplets."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from sgpipe.export.coco import category_ids, coco_images, instances
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json
from sgpipe.sources.coco import NO_RELATION


def write_coco_relations(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json (instances) and rel.json: triplets by split and image; their object indices
    skip crowds.
    """
    numbers = category_ids(rows, with_nothing=True)
    names = rows.names[1]
    predicates = dict(zip(names, count(1), strict=False))

    def triplets(split: str) -> Iterator[tuple[str, list[list[int]]]]:
        for image, record in coco_images(rows, split, "objects", "relations"):
            counted = (index for index, box in enumerate(record.objects) if not box.iscrowd)
            indices = dict(zip(counted, count(), strict=False))
            triplets_of_image = []
            for relation in rows.relations(record, indices):
                label = predicates[relation.predicate]
                triplets_of_image.append([relation.subject, relation.object, label])
            yield str(image["id"]), triplets_of_image

    for split in rows.splits:
        members = instances(rows, split, numbers, with_nothing=True)
        write_json(out / f"{split}.json", Members(members))
    splits = [(split, Members(triplets(split))) for split in rows.splits]
    write_json(out / "rel.json", Members([*splits, ("rel_categories", [NO_RELATION, *predicates])]))


COCO_RELATIONS = Format("coco-rel", write_coco_relations)
