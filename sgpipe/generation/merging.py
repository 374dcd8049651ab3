"""`sgpipe merge`: several runs as one, in which the rows of an image are united.

A row keeps in `sources` the rows of single runs that it was made from, so the result depends only
on which runs went into it. DuckDB finds the rows of each image and sorts them on disk, beside a
file with the images of the shards.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.errors import UserError, first_line
from sgpipe.files.image_roots import ImagePlace, image_root
from sgpipe.files.locations import Location
from sgpipe.generation.merge_inputs import Match, MergeInputs, input_id, is_merged, ranked
from sgpipe.generation.uniting import Precedence, unite
from sgpipe.images import read_bytes
from sgpipe.records import SCHEMA, from_table, to_table
from sgpipe.sources.extended_run import open_parent
from sgpipe.sources.import_run import ROWS_PER_SHARD
from sgpipe.storage.header import SingleRun
from sgpipe.storage.index_build import FAULTS
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFiles, RunFolder
from sgpipe.storage.shards import (
    IMAGE_COLUMN,
    SOURCES,
    count_rows,
    open_shard,
    shard_name,
    with_images,
    write_copy,
)
from sgpipe.utils.console import Progress
from sgpipe.utils.database import configure, interruptible
from sgpipe.utils.processes import in_processes

Database: TypeAlias = duckdb.DuckDBPyConnection
Ints: TypeAlias = NDArray[np.int64]

MERGED = "merged."  # prefix of these counts of a shard:
UNITED = (
    "united_objects",
    "united_relations",
    "contradictory_classes",
    "contradictory_relations",
    "returned_relations",
    "overruled_relations",
)
_MEMORY = "300MB"
_FILES_AT_ONCE = 4096
# the place of an image, and its hash
_PLACE = pa.schema([("start", pa.int64()), ("size", pa.int64()), ("content", pa.string())])
_FILE_START = 64 << 10  # bytes of a file that tell it from another of the same name
_UNITS_OF_PROCESS = 4  # for fewer shards no process is started
_NO_IMAGE = (0, 0)  # its start and size

# `names`: what identifies the rows. `files`: what tells files apart, read where it matters.
_NAMES = """
    create table names as
    select n.*, coalesce(root, '') as root from (
        select rowid as leaf, run, split, image_id, file_name, width, height, status <> 'ok' as failed, content
        from leaves qualify row_number() over (partition by run, split, image_id, file_name) = 1) n
    left join roots using (run, split);
    create table files (root varchar, file_name varchar, digest varchar)
"""
_WANTED = {
    "file": (
        "file_name in (select file_name from names group by all having count(distinct root) > 1)"
    ),
    "id": "false",
    "hash": "content is null",
}
# A file that cannot be read is the same one in the same place.
_UNREAD = (
    "if(root = '', concat_ws(chr(10), run, split, image_id), concat_ws(chr(10), root, file_name))"
)
_KEYS = {"file": "file_name", "id": "image_id", "hash": f"coalesce(content, digest, {_UNREAD})"}
# Rows of one key are of one image, unless sizes or files differ. Where a run has a key twice, split
# and id count, too. Error rows come last. The run with the most rows comes first, and names the
# image and its split; images that this would give the same split and id, or one split in two
# places, go to further splits.
_PLAN = f"""
    create table members as
    with keyed as (select *, {{key}} as key, count(*) over (partition by run, {{key}}) > 1 as twice
        from names left join files using (root, file_name)),
    told as (select * replace (
        if(bool_or(twice) over (partition by key), concat_ws(chr(10), key, split, image_id), key) as key) from keyed),
    known as (select *, [width::varchar, height::varchar, coalesce(digest, max(digest) over (partition by key))] as look
        from told),
    looked as (select * replace (if(failed, min(look) filter (where not failed) over (partition by key), look) as look)
        from known),
    numbered as (select *, dense_rank() over (order by key, look) as number from looked)
    select *, row_number() over (partition by number order by failed, rank, file_name) as place
    from numbered join ranks using (run);
    create table images as
    with leads as (select *, row_number() over (partition by split, root, image_id order by file_name, number) as turn
        from members where place = 1),
    varied as (select *, dense_rank() over (partition by split order by turn, root) as variant from leads),
    ordered as (select *, row_number() over (partition by split, variant order by file_name, image_id) - 1 as slot
        from varied)
    select number, split as lead_split, variant, root as lead_root, slot,
        dense_rank() over (order by split, variant, slot // {ROWS_PER_SHARD}) - 1 as unit from ordered
"""
_COUNTED = """
    select (select count(*) from images) as images,
        (select count(*) from members where place = 2 and not failed) as shared,
        (select count(*) from (select key from members group by key having count(distinct number) > 1)) as different,
        (select count(*) from members where place > 1 and failed and number in (
            select number from members where place = 1 and not failed)) as replaced,
        (select count(*) from members where place = 1 and failed) as failed,
        (select count(*) from files where digest is null) as unread
"""
_UNITS = """
    select lead_split, variant, any_value(lead_root), min(slot), max(slot) + 1 from images
    group by lead_split, variant, unit order by unit
"""
_SORTED = """
    create table sorted as select unit, slot, place, leaves.* from leaves
    join (from members join images using (number)) plan on leaves.rowid = leaf order by unit, slot, place;
    drop table leaves
"""
_OF_UNIT = "from sorted where unit = ? order by slot, place"


def merge_runs(
    places: Sequence[str | Location],
    out: Path,
    progress: Progress,
    match: Match = "file",
    min_iou: float = 0.6,
    images: ImagePlace | None = None,
    prefer: str | Location | None = None,
    workers: int = 1,
) -> Manifest:
    """Merge runs into `out`, and return its manifest; an earlier call that stopped is resumed.

    The header has under `matched` the numbers of `images`, of those `shared` by several runs, of
    names that stand for `different` images, of error rows that were `replaced` by the row of
    another run, of images that `failed` in all runs, and of `unread` files.

    Args:
        match: what rows of one image have in common.
        min_iou: IoU from which boxes of one class are one object.
        images: where they are, if they moved.
        prefer: one of the runs; the images that it has keep its relations alone.
        workers: the most processes that unite rows, each at least `_UNITS_OF_PROCESS` shards.

    Raises:
        UserError: a place is not a complete run, all are the same run, `prefer` is none of them, a
            shard cannot be read, or `out` is another run or in use.
    """
    inputs = MergeInputs.open(places, progress)
    preferred = None if prefer is None else input_id(open_parent(prefer))
    if preferred not in (None, *inputs.files):
        raise UserError(f"{prefer} is not one of the runs: --prefer takes one that is merged")
    header = inputs.header(match, min_iou, images, preferred)
    precedence = Precedence(header["identity"].get("prefer", {}), inputs.corrections())
    folder = RunFolder(out)
    with folder.lock():
        manifest = folder.open(header)
        lost = {shard.file for shard in manifest.lost(folder.storage)}
        if manifest.run["finished"] and not lost:
            progress.say(f"nothing left to do: {out} has these runs")
            return manifest
        folder.sweep(manifest)
        scratch = folder.private / "merging"
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
        scratch.mkdir()
        done = {shard.file for shard in manifest.shards} - lost
        with (
            interruptible(),
            duckdb.connect(scratch / "rows") as database,
            (scratch / "images").open("w+b") as embedded,
        ):
            try:
                configure(database, scratch / "spill", _MEMORY, ordered=True)
                progress.say("reading the runs")
                _read(database, inputs, header["runs"], embedded, hashed=match == "hash")
                embedded.flush()  # the processes open it
                _plan(database, match)
                [matched] = database.sql(_COUNTED).to_arrow_table().to_pylist()
                units, manifest.run["images"] = _units(database)
                manifest.run["finished"] = False  # a lost shard may have been of several units
                manifest.rewrite()
                missing = {
                    number: unit for number, unit in enumerate(units) if unit.file not in done
                }
                unite_rows = partial(
                    _unite_rows,
                    min_iou=min_iou,
                    images=scratch / "images",
                    precedence=precedence,
                )
                with progress.images(matched["images"], "merging") as advance:
                    advance(matched["images"] - sum(unit.rows for unit in missing.values()), {})
                    for unit, rows, counts in _unite_units(database, missing, unite_rows, workers):
                        manifest.commit(write_copy(out, unit, rows, counts))
                        advance(unit.rows, {})
            except FAULTS as error:
                raise UserError(
                    f"the runs cannot be merged in {out} ({first_line(error)})"
                ) from None
        shutil.rmtree(scratch)
        manifest.run |= {"finished": True, "matched": matched}
        manifest.rewrite()
        title = f"{header['name']}: merged by sgpipe"
        folder.write_readme(title, f"`{SOURCES}` has the rows of single runs.", manifest)
    return manifest


def _read(
    database: Database,
    inputs: MergeInputs,
    runs: Mapping[str, SingleRun],
    images: BinaryIO,
    *,
    hashed: bool,
) -> None:
    """Read all rows of single runs, and where the images of each of these are; those in the shards
    go to `images`.
    """
    database.register("empty", _without_images(SCHEMA.empty_table(), images, hashed=hashed))
    database.execute("create table leaves as select ''::varchar as run, * from empty")
    _write_places(database, runs)
    roots: dict[bool, str] = {}  # a run with images in its shards, and one without
    for number, files in inputs.files.items():
        insert = _insertion(number, files)
        for shard in files.manifest.shards:
            with open_shard(files.storage / shard.file, SCHEMA.names) as file:
                roots.setdefault(IMAGE_COLUMN in file.schema_arrow.names, files.root)
                groups = map(file.read_row_group, range(file.num_row_groups))
                tables = [_without_images(table, images, hashed=hashed) for table in groups]
            if len(roots) > 1:
                lacks = f"{roots[True]} has images in its shards, {roots[False]} has not"
                raise UserError(f"{lacks}: embed the images of all runs or of none")
            if tables:
                database.register("shards", pa.concat_tables(tables))
                database.execute(insert)


def _write_places(database: Database, runs: Mapping[str, SingleRun]) -> None:
    """Write where the images of single runs are, and the order of these runs."""
    database.execute("create table roots (run varchar, split varchar, root varchar)")
    database.execute("create table ranks (run varchar, rank int)")
    for rank, run in enumerate(ranked(runs)):
        database.execute("insert into ranks values (?, ?)", (run, rank))
        for split, root in runs[run]["images"].items():
            database.execute("insert into roots values (?, ?, ?)", (run, split, root))


def _insertion(number: str, files: RunFiles) -> str:
    """Return the SQL that inserts the rows of single runs in a table `shards` of a run."""
    columns = f"'{number}' as run, {', '.join(SCHEMA.names)}"
    table = "shards"
    if is_merged(files):
        from_source = [
            f"coalesce(source.{name}, {name}) as {name}" for name in SCHEMA.names if name != "split"
        ]
        columns = f"source.run, source.split, {', '.join(from_source)}"
        table = f"(select *, unnest({SOURCES}) as source from shards)"
    return f"insert into leaves by name select {columns}, start, size, content from {table}"


def _without_images(table: pa.Table, images: BinaryIO, *, hashed: bool) -> pa.Table:
    """Return the rows with `start` and `size` of their image files in `images`, to which these are
    added.
    """
    places: list[dict[str, object]] = [{} for _ in range(len(table))]
    if IMAGE_COLUMN in table.column_names:
        for place, image in zip(places, table[IMAGE_COLUMN], strict=True):
            content = image["bytes"].as_py()
            if content is not None:
                place["start"] = images.tell()
                place["size"] = images.write(content)
                place["content"] = hashlib.sha256(content).hexdigest() if hashed else None
        table = table.drop_columns([IMAGE_COLUMN])
    columns = pa.Table.from_pylist(places, _PLACE).columns
    return pa.table([*table.columns, *columns], [*table.column_names, *_PLACE.names])


def _plan(database: Database, match: Match) -> None:
    """Find out which rows are of one image, and where each image goes."""
    database.execute(_NAMES)
    wanted = (
        "select distinct root, file_name from names where not failed and root <> '' and"
        f" {_WANTED[match]}"
    )
    for batch in database.cursor().sql(wanted).to_arrow_reader(_FILES_AT_ONCE):
        digests = [
            _digest(file["root"], file["file_name"], start_only=match != "hash")
            for file in batch.to_pylist()
        ]
        database.register("digests", batch.append_column("digest", pa.array(digests, pa.string())))
        database.execute("insert into files from digests")
    database.execute(_PLAN.format(key=_KEYS[match]))
    database.execute(_SORTED)


def _digest(root: str, file_name: str, *, start_only: bool) -> str | None:
    """Return the hash of an image file, or of its first bytes; None: it cannot be read."""
    try:
        if start_only:
            content = read_bytes(image_root(root).open(file_name, _FILE_START), _FILE_START)
        else:
            content = read_bytes(image_root(root).open(file_name))
    except (UserError, FileNotFoundError):
        return None
    return hashlib.sha256(content).hexdigest()


def _units(database: Database) -> tuple[list[ShardEntry], dict[str, str]]:
    """Return the shards to write, in order, and where the images of each of their splits are."""
    rows = database.execute(_UNITS).fetchall()
    names = {(split, 1): split for split, *_ in rows}
    units: list[ShardEntry] = []
    images: dict[str, str] = {}
    for split, variant, root, start, stop in rows:
        if (split, variant) not in names:
            names[split, variant] = _free_name(split, variant, names.values())
        name = names[split, variant]
        if root:
            images[name] = root
        units.append(ShardEntry(name, start, stop, shard_name(name, start, stop), "", 0))
    return units, images


def _free_name(split: str, variant: int, taken: Collection[str]) -> str:
    """Return the name of a further split for images that have no place in one."""
    number = variant
    while f"{split}_{number}" in taken:
        number += 1
    return f"{split}_{number}"


def _unite_units(
    database: Database,
    units: Mapping[int, ShardEntry],
    unite_rows: Callable[[pa.Table], tuple[pa.Table, dict[str, int]]],
    workers: int,
) -> Iterator[tuple[ShardEntry, pa.Table, dict[str, int]]]:
    """Yield shards, by their numbers in the database, each with its rows and its counts."""
    members = (database.sql(_OF_UNIT, params=[number]).to_arrow_table() for number in units)
    processes = min(workers, len(units) // _UNITS_OF_PROCESS)
    place = SCHEMA.names.index("split")
    with in_processes(unite_rows, members, processes) as united:
        for unit, (rows, counts) in zip(units.values(), united, strict=True):
            split = pa.array([unit.split] * len(rows))
            yield unit, rows.set_column(place, SCHEMA.field("split"), split), counts


def _unite_rows(
    members: pa.Table, min_iou: float, images: Path, precedence: Precedence
) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of a shard, with the splits that single runs have, and its counts.

    Args:
        members: the rows of single runs, by the image that they are of (`slot`), the leading one
            first.
    """
    first = np.flatnonzero(np.diff(members["slot"].to_numpy(), prepend=-1))
    sizes = np.diff([*first, len(members)])
    is_shared = np.repeat(sizes > 1, sizes)
    united, counts = _unite_shared(
        members.filter(is_shared), sizes[sizes > 1].tolist(), min_iou, precedence
    )
    alone = members.take(first[sizes == 1]).select(SCHEMA.names).cast(SCHEMA)
    alone_first = np.argsort(sizes > 1, kind="stable")
    rows = pa.concat_tables([alone, united]).take(np.argsort(alone_first))
    if members["start"].null_count < len(members):
        rows = with_images(rows, _read_images(members, first, sizes, images))
    rows = rows.append_column(SOURCES, _sources(members, first, is_shared))
    merged = {f"{MERGED}{name}": number for name, number in counts.items()}
    return rows, count_rows(rows) | merged


def _unite_shared(
    members: pa.Table, sizes: Sequence[int], min_iou: float, precedence: Precedence
) -> tuple[pa.Table, Counter[str]]:
    """Return a row for each image of several runs, and counts of what was united.

    Args:
        sizes: of each image, how many rows it has.
    """
    rows = zip(from_table(members.select(SCHEMA.names)), members["run"].to_pylist(), strict=True)
    counts = Counter[str]()
    united = []
    for size in sizes:
        group = list(islice(rows, size))
        readable = [(record, run) for record, run in group if record.ok] or group[:1]
        records, runs = zip(*readable, strict=True)
        record, counts_of_image = unite(records, min_iou, runs, precedence)
        united.append(record)
        counts += counts_of_image
    return to_table(united), counts


def _read_images(members: pa.Table, first: Ints, sizes: Ints, images: Path) -> list[bytes | None]:
    """Return the file of each image, of the first row that has it."""
    places = list(zip(members["start"].to_pylist(), members["size"].to_pylist(), strict=True))
    contents = []
    with images.open("rb") as file:
        for begin, size in zip(first.tolist(), sizes.tolist(), strict=True):
            of_image = places[begin : begin + size]
            start, length = next((place for place in of_image if place[1]), _NO_IMAGE)
            contents.append(os.pread(file.fileno(), length, start) or None)
    return contents


def _sources(members: pa.Table, first: Ints, is_shared: NDArray[np.bool_]) -> pa.ListArray:
    """Return the rows of single runs that each row is made from; of one run's row only which run
    that is.
    """
    of_shared = pa.array(np.arange(len(members)), mask=~is_shared)
    columns = {name: members[name].take(of_shared) for name in SCHEMA.names}
    columns |= {name: members[name] for name in ("run", "split")}
    rows = pa.StructArray.from_arrays(
        [column.combine_chunks() for column in columns.values()], list(columns)
    )
    return pa.ListArray.from_arrays(pa.array([*first, len(members)], pa.int32()), rows)
