"""`sgpipe export --to sgg-benchmark`: COCO instances with relations, as SGG-Benchmark reads them."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from sgpipe.export.coco import category_ids, coco_images, instances
from sgpipe.export.fields import confidence_field
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json


def write_sgg_benchmark(rows: ExportRows, out: Path) -> None:
    """Write SPLIT/_annotations.coco.json: instances with `rel_annotations`, which refer to the ids
    of `annotations`.
    """
    # SGG-Benchmark takes class and predicate 0 for the background, so numbers of both begin at 1.
    numbers = category_ids(rows, with_nothing=True, positive=True)
    predicates = dict(zip(rows.names[1], count(1), strict=False))
    categories = [{"id": number, "name": name} for name, number in predicates.items()]

    def annotations(split: str) -> Iterator[dict[str, object]]:
        # `instances` numbers the boxes of a split from 1
        ids = count(1)
        before = 1
        for image, record in coco_images(rows, split, "objects", "relations"):
            places = {index: before + index for index in range(len(record.objects))}
            for item in rows.relations(record, places):
                relation: dict[str, object] = {
                    "id": next(ids),
                    "image_id": image["id"],
                    "subject_id": item.subject,
                    "predicate_id": predicates[item.predicate],
                    "object_id": item.object,
                }
                yield relation | confidence_field(item)
            before += len(record.objects)

    for split in rows.splits:
        (out / split).mkdir()
        members = instances(rows, split, numbers, with_nothing=True)
        members.insert(2, ("rel_annotations", annotations(split)))
        write_json(
            out / split / "_annotations.coco.json",
            Members([*members, ("rel_categories", categories)]),
        )


SGG_BENCHMARK = Format("sgg-benchmark", write_sgg_benchmark)
