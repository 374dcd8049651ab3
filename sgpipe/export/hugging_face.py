"""A dataset as the Hugging Face hub shows it: Parquet files with their final names, and a card.

The card of a dataset on the Hugging Face hub: what is in it, where it is from, how good it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sgpipe.evaluation.label_quality.report import LABELS, known_quality
from sgpipe.export.rows import Labels, iter_groups
from sgpipe.images import ImageError, read_image
from sgpipe.records import TRAINED_ON, Record, from_table
from sgpipe.sources.hugging_face import CLASSES
from sgpipe.stats.measures import Measures, measure_database
from sgpipe.storage.database import open_run
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.shards import AGREEMENT, DATA, IMAGE_COLUMN, open_shard, with_images
from sgpipe.utils import __version__

_ROWS_PER_GROUP = 512
_IMAGES_PER_GROUP = 100  # as the hub's viewer wants it
_IMAGE = ("image_id", "dataset", "split", "file_name", "width", "height", "status")


def write_hugging_face(labels: Labels, out: Path, images: Path | None, *, embed: bool) -> None:
    """All rows and columns, error rows too, one file for each shard.

    Args:
        images: folder of the images, if they are no longer where the run found them.
        embed: put the image files into the rows; images that are in the shards stay there anyway.

    Raises UserError: a shard cannot be read, or it is not known where the images are.
    """
    (out / DATA).mkdir()
    for split in labels.splits:
        shards = labels.shards(split)
        for number, shard in enumerate(shards):
            tables = _tables(labels, shard, images, embed=embed)
            _write(out / DATA / f"{split}-{number:05d}-of-{len(shards):05d}.parquet", tables, labels)
    written = pq.read_schema(out / DATA / f"{split}-00000-of-{len(shards):05d}.parquet")
    write_card(labels, out, embedded=IMAGE_COLUMN in written.names)


def _tables(labels: Labels, shard: ShardEntry, images: Path | None, *, embed: bool) -> Iterator[pa.Table]:
    """The row groups of a shard, without relations that are not wanted, and with the images of the folder."""
    path = labels.root / shard.file
    with open_shard(path) as file:
        columns = file.schema_arrow.names
    absent = embed and IMAGE_COLUMN not in columns
    folder = labels.manifest.image_folder(shard.split, images) if absent else None
    for table in iter_groups(path, columns):
        table = _confident(labels, table)
        if folder is not None:
            records = from_table(table.select(_IMAGE))
            table = with_images(table, [_image(labels, folder, record) for record in records])
        yield table


def _confident(labels: Labels, table: pa.Table) -> pa.Table:
    """Without the relations below the threshold, and what `sgpipe score` says of them."""
    if not labels.threshold:
        return table
    wanted = [[labels.wants(item["confidence"]) for item in row] for row in table["relations"].to_pylist()]
    labels.left_out["relations below the threshold"] += sum(row.count(False) for row in wanted)
    for name in {"relations", AGREEMENT} & set(table.column_names):
        rows = table[name].to_pylist()
        kept = [[item for item, keep in zip(*pair, strict=True) if keep] for pair in zip(rows, wanted, strict=True)]
        column = table.schema.get_field_index(name)
        table = table.set_column(column, table.field(name), pa.array(kept, table.field(name).type))
    return table


def _image(labels: Labels, images: Path, record: Record) -> bytes | None:
    try:
        return read_image(images, record) if record.ok else None
    except ImageError:
        labels.left_out["images that cannot be read"] += 1
        return None


def _write(path: Path, tables: Iterator[pa.Table], labels: Labels) -> None:
    """Raises UserError: the shard that the tables are of cannot be read."""
    first = next(tables)
    schema = first.schema.with_metadata(_metadata(first.schema, labels))
    rows = _IMAGES_PER_GROUP if IMAGE_COLUMN in schema.names else _ROWS_PER_GROUP
    with path.open("xb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in (first, *tables):
                writer.write_table(table.cast(schema), row_group_size=rows)
        file.flush()
        os.fsync(file.fileno())


def _metadata(schema: pa.Schema, labels: Labels) -> dict[bytes | str, bytes | str]:
    """The shard's own, what `datasets` looks for, and the run's lists of classes."""
    described = {
        "huggingface": json.dumps({"info": {"features": {field.name: _feature(field) for field in schema}}}),
        CLASSES: json.dumps(labels.manifest.run.get("labels")),
    }
    return {**(schema.metadata or {}), **described}


def _feature(field: pa.Field) -> Any:
    """A column as `datasets` describes it; lists in the way that all its versions know."""
    return {"_type": "Image"} if field.name == IMAGE_COLUMN else _of_type(field.type)


def _of_type(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_of_type(kind.value_type)]
    if pa.types.is_struct(kind):
        return {inner.name: _of_type(inner.type) for inner in kind}
    names = {pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_MOST = 10  # names in a list

# By dataset: the identifier of its licence on the hub, and what is known of it.
_LICENCES = {
    "coco": ("cc-by-4.0", "COCO's annotations are CC BY 4.0; its images have the licences of their owners on Flickr"),
    "visual_genome": ("cc-by-4.0", "Visual Genome is CC BY 4.0"),
    "open_images": ("cc-by-4.0", "Open Images' annotations are CC BY 4.0, its images are listed as CC BY 2.0"),
    "objects365": ("cc-by-4.0", "Objects365's annotations are CC BY 4.0; its images are not its own"),
    "miniworld": ("apache-2.0", "the images and all about them were drawn by sgpipe, which is Apache-2.0"),
}
_UNKNOWN = ("other", "not known to sgpipe: look it up where the data is from, before you publish this")


def write_card(labels: Labels, out: Path, *, embedded: bool) -> None:
    """Write README.md; `images`: whether they are in the rows. Raises UserError: a shard cannot be read."""
    with open_run(labels.root) as database:
        measures = measure_database(database)
    run = labels.manifest.run
    licences = {dataset: _licence(dataset) for dataset in measures.datasets}
    quality = known_quality(labels.root, max(TRAINED_ON, labels.threshold))
    text = _template().render(
        header=yaml.safe_dump(_header(labels, measures, {name for name, _ in licences.values()}), sort_keys=False),
        name=run["name"],
        version=__version__,
        imported="import" in run.get("identity", {}),
        identity=yaml.safe_dump(run.get("identity", {}), sort_keys=False),
        licences={dataset: sentence for dataset, (_, sentence) in licences.items()},
        measures=measures,
        levels=[level for level in measures.thresholds if np.float32(level.threshold) > labels.threshold],
        predicates=sorted(labels.census.predicates.items(), key=lambda item: (-item[1], item[0])),
        most=_MOST,
        quality=quality[LABELS] if quality else None,
        embedded=embedded,
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _header(labels: Labels, measures: Measures, licences: set[str]) -> dict[str, object]:
    """What the hub reads."""
    files = [{"split": split, "path": f"{DATA}/{split}-*.parquet"} for split in labels.splits]
    size = next((name for limit, name in _SIZES.items() if measures.rows < limit), "n>10M")
    return {
        "license": licences.pop() if len(licences) == 1 else "other",
        "pretty_name": f"{labels.manifest.run['name']} relations",
        "task_categories": ["object-detection"],
        "tags": ["scene-graph-generation", "visual-relationship-detection", "sgpipe"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _licence(dataset: str) -> tuple[str, str]:
    return _LICENCES.get({"coco2017": "coco", "o365": "objects365"}.get(dataset, dataset), _UNKNOWN)


def _template() -> jinja2.Template:
    # The card is Markdown: names stand between backticks and are not escaped as HTML.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sgpipe.export", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("card.md.jinja")
