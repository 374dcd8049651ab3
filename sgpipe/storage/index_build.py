"""Build the index of a run from its shards.

Rows are read into a temporary database, with names as text. In the index names are enums, images
are numbered in the order of the manifest, and each relation has the numbers by which searches
choose and order.

Tables: images (with its `shard` and `row`, `why` it has no relations, and `flags`, the marks of the
health rules), objects (boxes in pixels), captions, relations (`certainty`: the confidence, 1 if
`annotated`), triplets, predicates and categories (how often they occur), shards (and why one is
left out), most_certain (relations, in the order of a search for everything), and counts: marks,
everything, about.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.errors import UserError, first_line
from sgpipe.records import LEFT_OUT, SCHEMA, TRAINING_CONFIDENCE
from sgpipe.storage.health_rules import MARKS, PLACED, mark_hits, prepare_checks, quoted
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFiles
from sgpipe.storage.shards import IMAGE_COLUMN, SCORES
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import Progress
from sgpipe.utils.database import configure, interruptible
from sgpipe.utils.hashing import fingerprint

LOTS = 4294967291  # a prime: x -> k x mod p shuffles the numbers below it
BINS = 20  # of the histogram of confidence; relations without confidence are in a further one
# Facets of relations, and their columns.
FACETS = {"subject": "subject_category", "predicate": "predicate", "object": "object_category"}
FACETS |= {name: name for name in ("dataset", "split", "status", "origin")}
HEAD = 4096  # triplets that the run has most often
MOST_CERTAIN = 1024  # relations, with which a search for everything begins
# Errors of DuckDB that come from a file or the disk; all others are bugs in a query.
FAULTS = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.SerializationException, duckdb.InternalException,
          duckdb.FatalException, duckdb.TransactionException)  # fmt: skip
_MEMORY = "450MB"  # of DuckDB, whose process takes about twice as much
_ROWS = 32_768  # of several shards that are in memory at once

_SCRATCH = f"""
    create table shards (shard int, file varchar, problem varchar);
    create table raw_images (image int, shard int, row int, image_id varchar, dataset varchar, split varchar,
        file_name varchar, width int, height int, status varchar, error varchar, embedded bool, lot uinteger,
        objects int, captions int, different_captions int, triplets int, matched_triplets int, pairs int,
        candidate_texts int, relations int, {", ".join(f"{name}_left_out bigint" for name in LEFT_OUT)});
    create table raw_objects (image int, number int, category varchar, iscrowd bool,
        x double, y double, w double, h double, attributes varchar[]);
    create table captions (image int, number int, caption varchar, scope varchar, boxes int[]);
    create table raw_relations (image int, number int, subject int, object int, predicate varchar,
        subject_category varchar, object_category varchar, confidence float, clip_score double, swapped double,
        rank int, contrasts int, vlm_score float, origin varchar);
"""

# `rows`: those of some shards, with the number of each image.
_FROM_SHARDS = (
    f"""insert into raw_images
    select image, shard, row, image_id, dataset, split, file_name, width, height, status, error, embedded = 1,
        md5_number_lower(concat(split, chr(10), image_id)) % {LOTS},
        coalesce(len(objects), 0), coalesce(len(captions), 0),
        coalesce(list_unique(list_transform(captions, lambda c: c.text)), 0), coalesce(len(triplets), 0),
        coalesce(len(list_filter(triplets,
            lambda t: t.subject_category is not null and t.object_category is not null)), 0),
        coalesce(len(pairs), 0), coalesce(list_sum(pairs), 0),
        coalesce(len(relations), 0), {", ".join(f"coalesce(left_out.{name}, 0)" for name in LEFT_OUT)}
    from rows""",
    """insert into raw_objects select image, number, object.category, object.iscrowd,
        object.bbox[1], object.bbox[2], object.bbox[3], object.bbox[4],
        nullif(list_distinct(list_transform(object.attributes, lambda a: a.name)), [])
    from (select image, unnest(objects) as object, unnest(range(len(objects))) as number from rows)""",
    """insert into captions select image, number, caption.text, caption.scope, caption.boxes
    from (select image, unnest(captions) as caption, unnest(range(len(captions))) as number from rows)""",
    """insert into raw_relations select image, number, relation.subject, relation.object, relation.predicate,
        objects[relation.subject::bigint + 1].category, objects[relation.object::bigint + 1].category,
        relation.confidence, clip.score, clip.swapped, clip.rank, clip.contrasts, vlm_score, relation.origin
    from (select image, objects, unnest(relations) as relation, unnest(range(len(relations))) as number,
        unnest(clip_score) as clip, unnest(vlm_score) as vlm_score from rows) where number is not null""",
)
# Also where no shard has scores.
_EMPTY = pa.Table.from_batches(
    [], pa.schema([*SCHEMA, *(pa.field(name, pa.list_(SCORES[name])) for name in SCORES)])
)

_NAMES = (
    "create table run.shards as from shards order by shard",
    """create type run.name as enum (
        select distinct name from (select unnest([dataset, split, status]) as name from raw_images
            union all select origin from raw_relations) order by 1)""",
    """create type run.category as enum (
        select distinct category from raw_objects where category is not null order by 1)""",
    """create type run.predicate as enum (
        select distinct predicate from raw_relations where predicate is not null order by 1)""",
    """create table run.objects as
    select * replace (category::run.category as category) from raw_objects order by image, number""",
    (
        "create table run.captions as select *, lower(caption) as folded from captions order by"
        " image, number"
    ),
    """create table run.triplets as
    select row_number() over (order by times desc, predicate, subject_category, object_category)::int as triplet, *
    from (select subject_category::run.category as subject_category, predicate::run.predicate as predicate,
        object_category::run.category as object_category, count(*) as times, avg(confidence) as confidence
        from raw_relations group by all)""",
    """create table run.predicates as
    select predicate, sum(times)::bigint as times from run.triplets group by 1 order by times desc, predicate""",
    """create table run.categories as
    select category, count(*) as times from run.objects where category is not null group by 1
    order by times desc, category""",
)
# What the health rules read, and what they mark.
_CHECKED = (
    f"""create table relations as
    select image, number, subject, object, predicate::run.predicate as predicate, confidence,
        coalesce(confidence, 1)::float as certainty, subject_category::run.category as subject_category,
        object_category::run.category as object_category
    from raw_relations where coalesce(confidence, 1)::float >= {TRAINING_CONFIDENCE}::float""",
    "create view objects as from run.objects",
    "create view images as from raw_images",
    """create table predicates as
    select predicate, lower(trim(predicate::varchar)) as word, times as relations from run.predicates""",
    "create table marked (image int, number int, bit bigint)",
)
# Why a row of `images` without relations has none: the first stage that left nothing.
_WHY = """case
    when objects = 0 then 'no objects'
    when (select sum(captions) from images) = 0 then 'nothing annotated' || (select removed from run_header)
    when captions = 0 then 'no captions'
    when triplets = 0 then 'no triplet in the captions'
    when matched_triplets = 0 then 'no triplet matches the objects'
    when pairs = 0 then 'no candidate pair'
    else 'tagging kept no candidate' || (select removed from run_header) end"""
_FLAGS = (
    "create table run.marks as select bit, count(*) as hits from marked group by 1",
    "create table flagged as select image, number, bit_or(bit) as flags from marked group by all",
)
_TABLES = (
    f"""create table run.images as
    select i.* replace (dataset::run.name as dataset, split::run.name as split, status::run.name as status),
        if(i.status = 'ok' and relations = 0, {_WHY}, null) as why, coalesce(flags, 0)::bigint as flags,
        (sum(objects) over (order by image rows unbounded preceding) - objects)::bigint as first_object
    from raw_images i left join (from flagged where number is null) using (image)
    order by image""",
    f"""create table run.relations as
    select image, number, subject, object, triplets.predicate, triplets.subject_category, triplets.object_category,
        coalesce(r.confidence, 1)::float as certainty, r.confidence is null as annotated,
        if(annotated, {BINS}, greatest(least(floor(certainty * {BINS}), {BINS - 1}), 0))::utinyint as bin,
        r.clip_score, swapped, rank, contrasts, vlm_score, triplet,
        ((lot::ubigint + 2654435761 * number::ubigint) % {LOTS})::uinteger as lot,
        coalesce(f.flags, 0)::bigint as flags, dataset, split, status, r.origin::run.name as origin
    from raw_relations r
    join run.triplets on triplets.subject_category is not distinct from r.subject_category::run.category
        and triplets.predicate is not distinct from r.predicate::run.predicate
        and triplets.object_category is not distinct from r.object_category::run.category
    join (select image, lot, dataset, split, status from run.images) using (image)
    left join flagged f using (image, number)
    order by image, number""",
    # Where a search for everything begins.
    f"""create table run.most_certain as
    from run.relations order by certainty desc, image, number limit {MOST_CERTAIN}""",
    # What the facets of a search for everything count.
    "create table run.everything as "
    + " union all ".join(
        f"select '{name}' as part, {column}::varchar as value, count(*) as times from run.relations"
        f" group by {column}"
        for name, column in (FACETS | {"confidence": "bin"}).items()
    )
    + f""" union all select 'triplet', triplet::varchar, times from run.triplets where triplet <= {HEAD}
    union all select 'total', 'hits', count(*) from run.relations
    union all select 'total', 'images', count(distinct image) from run.relations""",
    """create table run.about as
    select (select count(*) from run.images) as images, count(*) as relations,
        coalesce(bool_or(clip_score is not null), false) as scored,
        coalesce(bool_or(vlm_score is not null), false) as has_vlm_scores
    from run.relations""",
)
# Whoever changes how an index is made makes earlier ones stale.
DEFINITION = repr((_SCRATCH, _FROM_SHARDS, _NAMES, _CHECKED, MARKS, PLACED, _FLAGS, _TABLES))


def build_index(files: RunFiles, folder: Path, progress: Progress) -> Path:
    """Index the shards of the manifest; list damaged ones.

    Raises UserError: the disk is full; StoreError.

    Args:
        folder: for the index and temporary files.
    """
    path = folder / "index.duckdb"
    try:
        with interruptible(), duckdb.connect(folder / "scratch.duckdb") as connection:
            execute = connection.execute
            configure(connection, folder / "spill", _MEMORY)
            execute(_SCRATCH)
            corrected = any(
                "corrected" in (identity or {})
                for identity in Manifest.identities(files.manifest.run)
            )
            execute(
                "create table run_header as select ? as removed",
                [", or removed by people" if corrected else ""],
            )
            _read_shards(connection, files, progress)
            execute(f"attach {quoted(path)} as run")
            for statement in (*_NAMES, *_CHECKED):
                execute(statement)
            prepare_checks(execute, TRAINING_CONFIDENCE)
            for statement in (*map(mark_hits, range(len(MARKS))), *_FLAGS, *_TABLES):
                execute(statement)
            execute("checkpoint run")
            execute("detach run")
    except (*FAULTS, duckdb.DataError) as error:
        raise UserError(
            f"the index of {files.root} cannot be built ({first_line(error)})"
        ) from None
    return path


def _read_shards(
    connection: duckdb.DuckDBPyConnection, files: RunFiles, progress: Progress
) -> None:
    """Read the shards into the temporary database, several at once; note why one is left out.

    The rows of those in a store are kept in the cache, so that of a run that grows only the new
    ones are downloaded.
    """
    shards = files.manifest.shards
    first = 0
    cached = dict[str, Path]()
    if files.is_stored:
        cached = {
            file: (
                files.cache
                / f"rows-{fingerprint({'definition': DEFINITION, 'state': state})}.parquet"
            )
            for file, state in files.states().items()
        }
        for path in set(files.cache.glob("rows-*.parquet")).difference(cached.values()):
            path.unlink(missing_ok=True)
    with progress.images(sum(shard.rows for shard in shards), "indexing") as advance:
        for lot in _lots(shards):
            tables: list[pa.Table] = []
            connection.execute("begin")
            for number, shard in lot:
                problem = None
                try:
                    tables.append(_rows(files, shard, cached.get(shard.file), number, first))
                except UserError as error:
                    problem = str(error)
                connection.execute(
                    "insert into shards values (?, ?, ?)", [number, shard.file, problem]
                )
                first += shard.rows
                advance(shard.rows, {})
            if tables:
                connection.register("rows", pa.concat_tables(tables))
                for statement in _FROM_SHARDS:
                    connection.execute(statement)
            connection.execute("commit")


def _lots(shards: Sequence[ShardEntry]) -> Iterator[list[tuple[int, ShardEntry]]]:
    """Yield the shards with their numbers, in their order: as many at once as have `_ROWS` rows, or
    one that has more.
    """
    lot: list[tuple[int, ShardEntry]] = []
    rows = 0
    for number, shard in enumerate(shards):
        if lot and rows + shard.rows > _ROWS:
            yield lot
            lot, rows = [], 0
        lot.append((number, shard))
        rows += shard.rows
    if lot:
        yield lot


def _rows(
    files: RunFiles, entry: ShardEntry, cached: Path | None, number: int, first: int
) -> pa.Table:
    """Return the rows of a shard, with their numbers (`pa.array` would import pandas).

    Raises:
        UserError: damaged.
    """
    rows = None
    if cached:
        with suppress(OSError, pa.ArrowException), pq.ParquetFile(cached) as file:
            rows = file.read()
    if rows is None:
        rows = _read_rows(files, entry)
        with suppress(OSError):  # a full disk, of which the index itself says more
            if cached:
                with atomic_write(cached) as temporary:
                    pq.write_table(rows, temporary, compression="zstd")
    places = np.arange(len(rows), dtype=np.int32)
    numbers = (places + first, places, np.full_like(places, number))
    added = [
        pa.Array.from_buffers(pa.int32(), len(rows), [None, pa.py_buffer(number)])
        for number in numbers
    ]
    return pa.table([*added, *rows.columns], ["image", "row", "shard", *rows.column_names])


def _read_rows(files: RunFiles, entry: ShardEntry) -> pa.Table:
    with files.open(entry.file) as file:
        names = file.schema_arrow.names
        table = file.read([name for name in _EMPTY.column_names if name in names])
        rows = pa.concat_tables([_EMPTY, table], promote_options="permissive").cast(_EMPTY.schema)
        rows.validate(full=True)  # what DuckDB does not check: text that is not UTF-8
    # Of their predicates only the number is kept: they are most of a shard.
    pairs = rows["pairs"].combine_chunks()
    texts = pc.list_value_length(pc.struct_field(pairs.values, "predicates"))
    place = rows.schema.get_field_index("pairs")
    rows = rows.set_column(place, "pairs", pa.ListArray.from_arrays(pairs.offsets, texts))
    if len(rows) != entry.rows:
        raise UserError(f"shard {entry.file} has {len(rows)} rows, the manifest says {entry.rows}")
    embedded = pa.py_buffer(np.full(len(rows), IMAGE_COLUMN in names, np.int32))
    return rows.append_column(
        "embedded", pa.Array.from_buffers(pa.int32(), len(rows), [None, embedded])
    )
