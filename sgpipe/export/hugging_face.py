"""A run with its images: Parquet files and a dataset card for the Hugging Face hub, and
WebDataset's tar files; and the README of every form: where the rows come from, by the identity of
the run, and what was left out of them.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from io import BytesIO
from itertools import compress
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from sgpipe.evaluation.label_quality import LABELS, run_quality
from sgpipe.export.formats import Format
from sgpipe.export.rows import COORDINATES, ExportRows, iter_groups, new_file
from sgpipe.images import open_header
from sgpipe.plugins import is_code_identity
from sgpipe.records import IMAGE_FIELDS, ORIGINS, TRAINING_CONFIDENCE, from_table
from sgpipe.registry import BUILT_IN
from sgpipe.sources.fields import single_line
from sgpipe.sources.hub import CLASSES_KEY, ORIGIN_KEY
from sgpipe.stats.audit import origins_text
from sgpipe.stats.measures import measure_database
from sgpipe.storage.datasets import open_files
from sgpipe.storage.index import open_run
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import (
    DATA,
    IMAGE_COLUMN,
    SCORES,
    SOURCES,
    open_shard,
    replace_column,
    with_images,
)
from sgpipe.utils import __version__
from sgpipe.utils.console import count

README = "README.md"

# By dataset: the identifier of its licence on the hub, and a sentence about it.
_LICENCES = {
    "coco": (
        "cc-by-4.0",
        "COCO's annotations are CC BY 4.0; its images keep the licences of their owners on Flickr",
    ),
    "visual_genome": (
        "cc-by-4.0",
        "Visual Genome itself is CC BY 4.0; other scene graphs in its format may not be",
    ),
    "open_images": (
        "cc-by-4.0",
        "Open Images' annotations are CC BY 4.0, its images are listed as CC BY 2.0",
    ),
    "objects365": (
        "cc-by-4.0",
        "Objects365's annotations are CC BY 4.0; its images are not its own",
    ),
    "miniworld": (
        "apache-2.0",
        "the synthetic images and their annotations come from sgpipe, which is Apache-2.0",
    ),
}
_SHORT = {"coco2017": "coco", "o365": "objects365"}
_UNKNOWN = ("other", "unknown to sgpipe; check the source of the data before you publish this")
_ROWS_PER_GROUP = 512
_LABEL = "label"
_RELATIONS = (*IMAGE_FIELDS, "relations")
_IMAGES_PER_GROUP = 100  # as the hub's viewer needs it


def describe_origin(
    run: Mapping[str, Any], reviewed: bool
) -> tuple[bool | None, list[str], list[dict[str, Any]]]:
    """Return how rows came to be, by the header of their manifest.

    Args:
        reviewed: whether people judged some relations.

    Returns:
        Whether models chose the relations (None: unknown), sentences in order, and the identities
        that the rows come from.
    """
    identities = [identity for identity in Manifest.identities(run) if identity]
    steps: list[str] = []
    for identity in identities:
        try:
            steps += _sentences(
                "steps.md.jinja", identity=identity, identities=identities, reviewed=reviewed
            )
        # changed by others
        except (jinja2.UndefinedError, AttributeError, KeyError, TypeError, ValueError):
            steps.append("One step is recorded in a form that sgpipe does not know; see below.")
    generated = None
    if any("tag" in identity for identity in identities):
        generated = True
    elif identities and _is_annotated(identities[0]):
        generated = False
    return generated, steps or ["How the rows were made is not recorded."], identities


def _is_annotated(identity: Mapping[str, Any]) -> bool:
    """Return whether rows were imported from what people annotated."""
    is_predicted = identity.get("options", {}).get("predictions")
    return identity.get("import") not in (None, "hf", "rlipv2") and not is_predicted


def certified_text(certificate: Mapping[str, Any]) -> str:
    """Return what a certificate promises, and its limits, in a sentence."""
    which = "of these relations"
    scope = ""
    if certificate["by"]:
        which = "of each predicate"
        is_single = certificate.get("family") is None
        scope = ", of each by itself" if is_single else ", of all of them together"
    begun = certificate.get("plans_begun", 1)
    plans = ""
    if begun > 1:
        plans = f"; {begun} such plans were begun, each with this chance to be wrong"
    return (
        f"People's answers to a random sample certify a precision {which} of at least"
        f" {certificate['precision']:g} (confidence {certificate['confidence']:g}{scope}; of"
        " relations between two boxes, as these people see them; how many relations are missing is"
        f" not certified{plans})."
    )


def write_readme(rows: ExportRows, out: Path, form: Format) -> None:
    """Write the README of a format that does not write its own, after its files."""
    before = rows.totals
    common = _common(rows)
    objects = rows.census.categories.total() - rows.left_out["objects that the format cannot hold"]
    unheld = [name for name in ("captions", "triplets", "pairs") if name not in form.keeps]
    listed = ", ".join(f"{name} ({before[name]:,})" for name in unheld if before[name])
    if listed:
        common["left_out"].append(f"What the format has no place for: {listed}.")
    table = [
        ("images", before["images"], before["images"] - before["errors"]),
        ("objects", before["boxes"], objects),
        ("relations", before["relations"], exported_relations(rows)),
    ]
    values = {
        "form": form.name,
        "is_built_in": form.name in BUILT_IN["format"],
        "table": table,
        "note": rows.note,
        "coordinates": COORDINATES[rows.options.coordinates],
    }
    (out / README).write_text(
        card_template("readme.md.jinja").render(common, **values), encoding="utf-8"
    )


def write_card(rows: ExportRows, out: Path, *, embedded: bool) -> None:
    """Write the dataset card of the hub, after the data.

    Args:
        embedded: whether the rows hold the images.
    """
    with open_run(rows.root) as database:
        measures = measure_database(database, calibration=rows.calibration)
        query = "select count(*) from related_images where certainty >= ?::float"
        [(related,)] = database.rows(query, [rows.threshold])
    before = rows.totals
    census = rows.census
    files = [{"split": split, "path": f"{DATA}/{split}-*.parquet"} for split in rows.splits]
    licences: dict[str, str] = {}
    names: set[str] = set()
    for dataset in measures.datasets:
        name, licences[dataset] = _LICENCES.get(_SHORT.get(dataset, dataset), _UNKNOWN)
        names.add(name)
    quality = run_quality(rows.root, max(TRAINING_CONFIDENCE, rows.threshold), rows.calibration)
    header = {
        "license": names.pop() if len(names) == 1 else "other",
        "pretty_name": f"{rows.manifest.run.get('name', 'sgpipe')} relations",
        "task_categories": ["object-detection"],
        "tags": ["scene-graph-generation", "visual-relationship-detection", "sgpipe"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    text = card_template("card.md.jinja").render(
        _common(rows),
        header=yaml.safe_dump(header, sort_keys=False),  # which the hub reads
        table=[
            ("images", before["images"], measures.rows),
            ("images with relations", before["images_with_relations"], related),
            ("relations", before["relations"], census.predicates.total()),
        ],
        licences=licences,
        measures=measures,
        levels=[
            level for level in measures.thresholds if np.float32(level.threshold) > rows.threshold
        ],
        census=census,
        predicates=sorted(census.predicates.items(), key=lambda item: (-item[1], item[0])),
        quality=quality[LABELS] if quality else None,
        embedded=embedded,
        measure=rows.measure,
    )
    (out / README).write_text(text, encoding="utf-8")


def exported_relations(rows: ExportRows) -> int:
    """Return how many relations an export has, once its files are written."""
    kinds = [kind for kind in rows.left_out if kind.startswith("relations ")]
    return rows.totals["relations"] - sum(map(rows.left_out.__getitem__, kinds))


def _common(rows: ExportRows) -> dict[str, Any]:
    """Return what the templates of both READMEs take."""
    run = rows.manifest.run
    problems = {key: n for key, n in rows.totals.items() if key.startswith("problem.")}
    reviewed = bool(rows.certificate) or open_files(rows.root).judgements.is_file()
    generated, steps, identities = describe_origin(run, reviewed)
    if rows.certificate:
        steps = [*steps, certified_text(rows.certificate.as_json())]
    return {
        "name": run.get("name", "sgpipe"),
        "version": __version__,
        "generated": generated,
        "steps": steps,
        "identities": [
            yaml.safe_dump(dict(identity), sort_keys=False, allow_unicode=True)
            for identity in identities
        ],
        "left_out": _sentences(
            "left_out.md.jinja", rows=rows, before=rows.totals, problems=problems
        ),
        "origins": origins_text(rows.census.origins) if rows.census.origins else "No relations",
    }


def _sentences(name: str, **values: object) -> list[str]:
    """Return the lines of a template; a missing value is empty."""
    text = card_template(name, jinja2.ChainableUndefined).render(values)
    return [line for line in text.splitlines() if line.strip()]


@cache
def card_template(
    name: str, undefined: type[jinja2.Undefined] = jinja2.StrictUndefined
) -> jinja2.Template:
    # The README is Markdown: names are in backticks and need no HTML escapes.
    loader = jinja2.PackageLoader("sgpipe.export", ".")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=undefined
    )
    environment.tests["code"] = is_code_identity
    environment.filters |= {
        "code": lambda name: f"`{single_line(name).replace('`', chr(39)) or ' '}`",
        "counted": count,
        "certified": certified_text,
    }
    return environment.get_template(name)


def write_hugging_face(rows: ExportRows, out: Path) -> None:
    """Write all rows and columns, including error rows, one file per shard.

    An object also has the number of its class as `label`, a `ClassLabel` of `datasets`. Images that
    the shards hold are always kept.

    Raises:
        UserError: the image folder is unknown.
    """
    (out / DATA).mkdir()
    names = _class_names(rows)
    has_images = False
    for split in rows.splits:
        shards = rows.shards(split)
        for number, shard in enumerate(shards):
            path = out / DATA / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            has_images = _write_shard(rows, shard, path, names)
    write_card(rows, out, embedded=has_images)


def _write_shard(rows: ExportRows, shard: ShardEntry, path: Path, names: list[str]) -> bool:
    """Write the file of a shard; return whether it has images."""
    tables = _tables(rows, shard, embed=rows.options.embed)
    first = _with_labels(next(tables), names)
    schema = first.schema.with_metadata(_metadata(first.schema, rows, names))
    has_images = IMAGE_COLUMN in schema.names
    group_size = _IMAGES_PER_GROUP if has_images else _ROWS_PER_GROUP
    with new_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        writer.write_table(first.cast(schema), row_group_size=group_size)
        for table in tables:
            labelled = _with_labels(table, names)
            writer.write_table(labelled.cast(schema), row_group_size=group_size)
    return has_images


def _class_names(rows: ExportRows) -> list[str]:
    """Return the closed list of classes, and then the names of others that occur."""
    names = set[str | None]()
    for shard in rows.manifest.shards:
        for table in iter_groups(rows.manifest.location_of(shard.file), ("objects",)):
            names.update(pc.unique(_categories(table)).to_pylist())
    listed = rows.manifest.class_lists["objects"]
    unlisted = [name for name in names if name is not None and name not in listed]
    return [*listed, *sorted(unlisted)]


def write_webdataset(rows: ExportRows, out: Path) -> None:
    """Write a SPLIT-000000.tar per shard: images, KEY.jpeg or so, and rows, KEY.json.

    Raises:
        UserError: there are no images.
    """
    for split in rows.splits:
        for number, shard in enumerate(rows.shards(split)):
            path = out / f"{split}-{number:06d}.tar"
            with new_file(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
                for key, row in enumerate(_rows_with_images(rows, shard)):
                    _add_row(tar, f"{key:06d}", row)


def _add_row(tar: tarfile.TarFile, key: str, row: dict[str, Any]) -> None:
    image = row.pop(IMAGE_COLUMN)["bytes"]
    with open_header(BytesIO(image), row["file_name"]) as header:
        # MPO is a JPEG with further images.
        suffix = str(header.format).lower().replace("mpo", "jpeg")
    _add_member(tar, f"{key}.{suffix}", image)
    _add_member(tar, f"{key}.json", json.dumps(row).encode())


def _rows_with_images(rows: ExportRows, shard: ShardEntry) -> Iterator[dict[str, Any]]:
    for table in _tables(rows, shard, embed=True):
        for row in table.to_pylist():
            if row["status"] == "ok" and row[IMAGE_COLUMN]:
                yield row


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def _categories(table: pa.Table) -> pa.Array:
    return pc.struct_field(pc.list_flatten(table["objects"].combine_chunks()), "category")


def _with_labels(table: pa.Table, names: list[str]) -> pa.Table:
    column = table["objects"].combine_chunks()
    items = pc.list_flatten(column)
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    labels = pc.index_in(_categories(table), pa.array(names, pa.string())).cast(pa.int64())
    kind = column.type.value_type
    parts = [pc.struct_field(items, number) for number in range(kind.num_fields)]
    structs = pa.StructArray.from_arrays(
        [*parts, labels], fields=[*kind, pa.field(_LABEL, pa.int64())]
    )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
    objects = pa.ListArray.from_arrays(offsets, structs)
    return table.set_column(table.schema.get_field_index("objects"), "objects", objects)


def _tables(rows: ExportRows, shard: ShardEntry, *, embed: bool) -> Iterator[pa.Table]:
    """Yield the row groups of a shard, with the relations that are exported and their scores, and
    with images.
    """
    path = rows.manifest.location_of(shard.file)
    with open_shard(path) as file:
        columns = [name for name in file.schema_arrow.names if name != SOURCES]
    has_all = not rows.threshold and rows.certificate is None and len(rows.origins) == len(ORIGINS)
    for table in iter_groups(path, columns):
        if not has_all:
            table = _with_chosen(table, rows)
        if embed and IMAGE_COLUMN not in columns:
            table = with_images(table, _images_of(table, rows))
        yield table


def _images_of(table: pa.Table, rows: ExportRows) -> list[bytes | None]:
    """Return the image file of each row, but of error rows."""
    records = from_table(table.select(IMAGE_FIELDS))
    return [rows.read_image(record) if record.ok else None for record in records]


def _with_chosen(table: pa.Table, rows: ExportRows) -> pa.Table:
    """Return a table with only the relations that are exported, and their scores."""
    chosen = [rows.choose(record) for record in from_table(table.select(_RELATIONS))]
    for name in ("relations", *SCORES):
        if name in table.column_names:
            values = map(compress, table[name].to_pylist(), chosen)
            table = replace_column(table, name, list(map(list, values)))
    return table


def _metadata(
    schema: pa.Schema, rows: ExportRows, names: list[str]
) -> dict[bytes | str, bytes | str]:
    """Return the metadata of the shard, a description for `datasets`, and the class lists and
    origin of the run.
    """
    features: dict[str, Any] = {field.name: feature_of(field.type) for field in schema}
    if IMAGE_COLUMN in features:
        features[IMAGE_COLUMN] = {"_type": "Image"}
    features["objects"][0][_LABEL] = {"names": names, "_type": "ClassLabel"}
    identities = [*filter(None, Manifest.identities(rows.manifest.run)), rows.identity]
    return {
        **(schema.metadata or {}),
        b"huggingface": json.dumps({"info": {"features": features}}),
        CLASSES_KEY.encode(): json.dumps(rows.manifest.run.get("labels")),
        ORIGIN_KEY.encode(): json.dumps(identities),
    }


def feature_of(kind: pa.DataType) -> Any:
    """Describe a column for `datasets`; lists in the notation that all its versions read."""
    if pa.types.is_list(kind):
        return [feature_of(kind.value_type)]
    if pa.types.is_struct(kind):
        return {inner.name: feature_of(inner.type) for inner in kind}
    names = {pa.float32(): "float32", pa.float64(): "float64"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


HUGGING_FACE = Format(
    "hf", write_hugging_face, options=("embed", "images"), threshold=0.0, own_readme=True
)
WEBDATASET = Format("webdataset", write_webdataset, options=("images",))
