"""`sgpipe merge`: several runs as one, in which the rows of an image are united.

A row keeps in `sources` the rows of single runs that it was made from, so the result depends only
on which runs went into it. DuckDB finds the rows of each image and sorts them on disk, beside a
file with the images of the shards.
"""

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from itertools import count as count_from
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sgpipe.errors import UserError, first_line
from sgpipe.files.image_roots import ImagePlace, absolute, image_root
from sgpipe.files.locations import Location
from sgpipe.generation.uniting import Precedence, unite
from sgpipe.images import read_bytes
from sgpipe.records import SCHEMA, from_table, to_table
from sgpipe.sources.import_run import ROWS_PER_SHARD
from sgpipe.sources.opening import open_parent
from sgpipe.storage.index_build import FAULTS, configure, interruptible
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
from sgpipe.utils.hashing import fingerprint

Match: TypeAlias = Literal["file", "id", "hash"]
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
_PLACE = pa.schema(
    [("start", pa.int64()), ("size", pa.int64()), ("content", pa.string())]
)  # of an image; its hash
_FILE_START = 64 << 10  # bytes of a file that tell it from another of the same name
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

    Raises:
        UserError: a place is not a complete run, all are the same run, `prefer` is none of them, a
            shard cannot be read, or `out` is another run or in use.
    """
    inputs = _open_inputs(places, progress)
    preferred = None if prefer is None else _input_id(open_parent(prefer))
    if preferred not in (None, *inputs):
        raise UserError(f"{prefer} is not one of the runs: --prefer takes one that is merged")
    header = _header(inputs, match, min_iou, images, preferred)
    precedence = Precedence(
        header["identity"].get("prefer", {}), _corrections(inputs, header["runs"])
    )
    folder = RunFolder(out)
    with folder.lock():
        manifest = folder.open(header)
        lost = {shard.file for shard in manifest.lost(folder.storage)}
        if manifest.run["finished"] and not lost:
            progress.say(f"nothing left to do: {out} has these runs")
            return manifest
        done = {shard.file for shard in manifest.shards} - lost
        folder.sweep(manifest)
        scratch = folder.private / "merging"
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
        scratch.mkdir()
        with (
            interruptible(),
            duckdb.connect(scratch / "rows") as database,
            (scratch / "images").open("w+b") as kept,
        ):
            try:
                configure(database, scratch / "spill", _MEMORY, ordered=True)
                progress.say("reading the runs")
                _read(database, inputs, header["runs"], kept, hashed=match == "hash")
                _plan(database, match)
                [matched] = database.sql(_COUNTED).to_arrow_table().to_pylist()
                units, manifest.run["images"] = _units(database)
                manifest.rewrite()
                with progress.images(matched["images"], "merging") as advance:
                    for number, unit in enumerate(units):
                        if unit.file not in done:
                            members = database.sql(_OF_UNIT, params=[number]).to_arrow_table()
                            rows, counts = _unite_rows(
                                members, unit.split, min_iou, kept, precedence
                            )
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


def _open_inputs(places: Sequence[str | Location], progress: Progress) -> dict[str, RunFiles]:
    """Return the runs by their ids, each once. Raises UserError: there is only one."""
    inputs: dict[str, RunFiles] = {}
    for files in map(open_parent, places):
        run = _input_id(files)
        if run in inputs:
            progress.say(
                f"NOTE: {files.root} is the same run as {inputs[run].root}, and counts once"
            )
        inputs.setdefault(run, files)
    if len(places) > 1 and len(inputs) == 1:
        [files] = inputs.values()
        raise UserError(
            f"all of these are the same run as {files.root}: merge needs two different runs"
        )
    return inputs


def _input_id(files: RunFiles) -> str:
    shards = sorted(shard.sha256 for shard in files.manifest.shards)
    return fingerprint({"run": files.manifest.run.get("fingerprint"), "shards": shards})


def _is_merged(run: Mapping[str, Any]) -> bool:
    return "merged" in run.get("identity", {})


def _header(
    inputs: Mapping[str, RunFiles],
    match: Match,
    min_iou: float,
    images: ImagePlace | None,
    preferred: str | None,
) -> dict[str, Any]:
    """Return what the manifest says, also of the single runs, by their ids."""
    runs: dict[str, dict[str, Any]] = {}
    for number, files in inputs.items():
        runs |= _single_runs(number, files)
    runs = dict(sorted(runs.items()))
    if images is not None:
        runs = {
            run: one | {"images": dict.fromkeys(one["images"], absolute(images))}
            for run, one in runs.items()
        }
    identity: dict[str, Any] = {
        "merged": {run: one["images"] for run, one in runs.items()},
        "match": match,
        "iou": min_iou,
    }
    overrules = _overrules(inputs, list(runs), preferred)
    if overrules:
        identity["prefer"] = overrules
    return {
        "name": " + ".join(sorted({one["name"] for one in runs.values()})),
        "identity": identity,
        "origin": list(chain.from_iterable(one["identities"] for one in runs.values())),
        "labels": _united_labels(runs),
        "runs": runs,
        "images": {},
        "finished": False,
    }


def _single_runs(number: str, files: RunFiles) -> dict[str, dict[str, Any]]:
    """Return what is known of the single runs that a run consists of, by their ids."""
    run = files.manifest.run
    if _is_merged(run):
        return dict(run["runs"])
    single = {
        "name": run.get("name") or "",
        "fingerprint": run.get("fingerprint"),
        "labels": run.get("labels"),
        "identities": Manifest.identities(run),
        "rows": sum(shard.rows for shard in files.manifest.shards),
        "images": {
            split: absolute(root) for split, root in files.manifest.image_roots.locations.items()
        },
    }
    return {number: single}


def _united_labels(runs: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Return the classes and predicates of all closed class lists, those of the largest run
    first.
    """
    closed = [runs[run]["labels"] for run in _ranked(runs) if runs[run]["labels"]]
    if not closed:
        return None
    return {
        kind: list(dict.fromkeys(chain.from_iterable(labels[kind] for labels in closed)))
        for kind in ("objects", "relations")
    }


def _overrules(
    inputs: Mapping[str, RunFiles], runs: Sequence[str], preferred: str | None
) -> dict[str, list[str]]:
    """Return the single runs that each overrules, by earlier merges and as `preferred`; those that
    do so mutually, not.

    What is preferred now is overruled by nothing.
    """
    losers = _earlier_overrules(inputs, runs)
    if preferred is not None:
        winners = set(_single_runs(preferred, inputs[preferred]))
        for run in runs:
            losers[run] = (
                losers[run] | set(runs) - winners if run in winners else losers[run] - winners
            )
    return {run: sorted(images) for run, images in losers.items() if images}


def _earlier_overrules(inputs: Mapping[str, RunFiles], runs: Sequence[str]) -> dict[str, set[str]]:
    losers: dict[str, set[str]] = {run: set() for run in runs}
    for files in inputs.values():
        for run, others in files.manifest.run.get("identity", {}).get("prefer", {}).items():
            losers[run].update(others)
    return {
        run: {other for other in images if run not in losers[other]}
        for run, images in losers.items()
    }


def _corrections(inputs: Mapping[str, RunFiles], runs: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the single runs that each is a correction of."""
    by_fingerprint: defaultdict[str, set[str]] = defaultdict(set)
    for run, single in runs.items():
        by_fingerprint[single.get("fingerprint", "")].add(run)
    for number, files in inputs.items():
        by_fingerprint[files.manifest.run["fingerprint"]].update(_single_runs(number, files))
    corrects: dict[str, set[str]] = {}
    for run, single in runs.items():
        corrects[run] = set()
        for identity in single["identities"]:
            if "corrected" in identity:
                corrects[run] |= by_fingerprint[identity["corrected"]] - {run}
    return corrects


def _ranked(runs: Mapping[str, Any]) -> list[str]:
    """Return the ids of runs, that of the most rows first."""
    return sorted(runs, key=lambda run: (-runs[run]["rows"], run))


def _read(
    database: Database,
    inputs: Mapping[str, RunFiles],
    runs: Mapping[str, Any],
    images: BinaryIO,
    *,
    hashed: bool,
) -> None:
    """Read all rows of single runs, and where the images of each of these are; those in the shards
    go to `images`.
    """
    database.register("empty", _without_images(SCHEMA.empty_table(), images, hashed=hashed))
    database.execute("create table leaves as select ''::varchar as run, * from empty")
    database.execute("create table roots (run varchar, split varchar, root varchar)")
    database.execute("create table ranks (run varchar, rank int)")
    for rank, run in enumerate(_ranked(runs)):
        database.execute("insert into ranks values (?, ?)", (run, rank))
        for split, root in runs[run]["images"].items():
            database.execute("insert into roots values (?, ?, ?)", (run, split, root))
    others = ", ".join(
        f"coalesce(source.{name}, {name}) as {name}" for name in SCHEMA.names if name != "split"
    )
    places: dict[bool, str] = {}  # a run with images in its shards, and one without
    for number, files in inputs.items():
        columns = f"'{number}' as run, {', '.join(SCHEMA.names)}"
        table = "shards"
        if _is_merged(files.manifest.run):
            columns = f"source.run, source.split, {others}"
            table = f"(select *, unnest({SOURCES}) as source from shards)"
        for shard in files.manifest.shards:
            with open_shard(files.storage / shard.file, SCHEMA.names) as file:
                places.setdefault(IMAGE_COLUMN in file.schema_arrow.names, files.root)
                groups = map(file.read_row_group, range(file.num_row_groups))
                tables = [_without_images(table, images, hashed=hashed) for table in groups]
            if len(places) > 1:
                lacks = f"{places[True]} has images in its shards, {places[False]} has not"
                raise UserError(f"{lacks}: embed the images of all runs or of none")
            if tables:
                database.register("shards", pa.concat_tables(tables))
                database.execute(
                    f"insert into leaves by name select {columns}, start, size, content from"
                    f" {table}"
                )


def _without_images(table: pa.Table, images: BinaryIO, *, hashed: bool) -> pa.Table:
    """Return the rows with `start` and `size` of their image files in `images`, to which these are
    added.
    """
    places: list[dict[str, Any]] = []
    for image in table[IMAGE_COLUMN] if IMAGE_COLUMN in table.column_names else [{}] * len(table):
        content = image["bytes"].as_py() if image else None
        places.append(
            {} if content is None else {"start": images.tell(), "size": images.write(content)}
        )
        if hashed and content is not None:
            places[-1]["content"] = hashlib.sha256(content).hexdigest()
    columns = pa.Table.from_pylist(places, _PLACE).columns
    rows = table.select([name for name in table.column_names if name != IMAGE_COLUMN])
    return pa.table([*rows.columns, *columns], [*rows.column_names, *_PLACE.names])


def _plan(database: Database, match: Match) -> None:
    """Find out which rows are of one image, and where each image goes."""
    database.execute(_NAMES)
    wanted = (
        "select distinct root, file_name from names where not failed and root <> '' and"
        f" {_WANTED[match]}"
    )
    for batch in database.cursor().sql(wanted).to_arrow_reader(_FILES_AT_ONCE):
        digests = [
            _digest(file["root"], file["file_name"], whole=match == "hash")
            for file in batch.to_pylist()
        ]
        database.register("digests", batch.append_column("digest", pa.array(digests, pa.string())))
        database.execute("insert into files from digests")
    database.execute(_PLAN.format(key=_KEYS[match]))
    database.execute(_SORTED)


def _digest(root: str, file_name: str, *, whole: bool) -> str | None:
    """Return the hash of an image file, or of its first bytes; None: it cannot be read."""
    try:
        if whole:
            content = read_bytes(image_root(root).open(file_name))
        else:
            content = read_bytes(image_root(root).open(file_name, _FILE_START), _FILE_START)
    except (UserError, FileNotFoundError):
        return None
    return hashlib.sha256(content).hexdigest()


def _units(database: Database) -> tuple[list[ShardEntry], dict[str, str]]:
    """Return the shards to write, in order, and where the images of each of their splits are."""
    names: dict[tuple[str, int], str] = {}
    units: list[ShardEntry] = []
    images: dict[str, str] = {}
    found = database.execute(_UNITS).fetchall()
    for split, *_ in found:
        names[split, 1] = split
    for split, variant, root, start, stop in found:
        if (split, variant) not in names:
            candidates = (f"{split}_{number}" for number in count_from(variant))
            names[split, variant] = next(name for name in candidates if name not in names.values())
        name = names[split, variant]
        if root:
            images[name] = root
        units.append(ShardEntry(name, start, stop, shard_name(name, start, stop), "", 0))
    return units, images


def _unite_rows(
    members: pa.Table, split: str, min_iou: float, images: BinaryIO, precedence: Precedence
) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of a shard and its counts.

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
    rows = rows.set_column(
        SCHEMA.names.index("split"), SCHEMA.field("split"), pa.array([split] * len(rows))
    )
    if members["start"].null_count < len(members):
        rows = with_images(rows, _read_images(members, first, sizes, images))
    rows = rows.append_column(SOURCES, _sources(members, first, is_shared))
    return rows, count_rows(rows) | {f"{MERGED}{what}": number for what, number in counts.items()}


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
        usable = [(record, run) for record, run in group if record.ok] or group[:1]
        records, runs = zip(*usable, strict=True)
        record, counts_of_image = unite(records, min_iou, runs, precedence)
        united.append(record)
        counts += counts_of_image
    return to_table(united), counts


def _read_images(
    members: pa.Table, first: Ints, sizes: Ints, images: BinaryIO
) -> list[bytes | None]:
    """Return the file of each image, of the first row that has it."""
    places = list(zip(members["start"].to_pylist(), members["size"].to_pylist(), strict=True))
    images.flush()
    contents = []
    for begin, size in zip(first.tolist(), sizes.tolist(), strict=True):
        start, length = next(
            (place for place in places[begin : begin + size] if place[1]), _NO_IMAGE
        )
        contents.append(os.pread(images.fileno(), length, start) or None)
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
