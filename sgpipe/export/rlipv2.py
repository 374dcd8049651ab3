"""`sgpipe export --to rlipv2`: pseudo-labels as RLIPv2's training reads them."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from sgpipe.export.fields import image_fields
from sgpipe.export.formats import Format
from sgpipe.export.rows import ExportRows, Members, write_json
from sgpipe.export.visual_genome import graph

_PUBLISHED = {"coco": ("coco2017", 10_000_000), "objects365": ("o365", 20_000_000)}
_OBJECTS365 = "o365"


def write_rlipv2(rows: ExportRows, out: Path) -> None:
    """Write SPLIT.json and, for Objects365, image_id_to_filepath.json, which locates its images."""
    ids: dict[str, tuple[Iterator[int], Iterator[int]]] = {}

    def pseudo_labels(split: str) -> Iterator[dict[str, object]]:
        for record in rows.records(split, "objects", "relations"):
            name, first = _PUBLISHED.get(record.dataset, (record.dataset, 1))
            of_dataset = ids.setdefault(name, (count(first), count(first)))
            # For COCO the folder of the image, where the published training looks for it.
            folder = record.file_name.rpartition("/")[0].rpartition("/")[2] or f"{record.split}2017"
            origin = {"dataset": name, "data_split": folder if name == "coco2017" else record.split}
            yield image_fields(record) | origin | graph(rows, record, of_dataset)

    for split in rows.splits:
        write_json(out / f"{split}.json", pseudo_labels(split))
    if _OBJECTS365 in ids:
        records = (record for split in rows.splits for record in rows.records(split))
        paths = (
            (record.image_id, record.file_name)
            for record in records
            if record.dataset in ("objects365", _OBJECTS365)
        )
        write_json(out / "image_id_to_filepath.json", Members(paths))


RLIPV2 = Format("rlipv2", write_rlipv2)
