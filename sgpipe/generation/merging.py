"""`sgpipe merge`: several runs as one, in which the rows of an image are united.

A row keeps in `sources` the rows of single runs that it was made from, so the result depends only on which runs went
into it. DuckDB finds the rows of each image and sorts them on disk, beside a file with the images of the shards.
"""

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import cache, lru_cache, reduce
from itertools import chain, islice
from itertools import count as count_from
from operator import attrgetter, or_
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar, get_args

import duckdb
import numpy as np
import pyarrow as pa

from sgpipe.errors import UserError, first_line
from sgpipe.files.image_roots import ImagePlace, absolute, image_root
from sgpipe.files.locations import Location
from sgpipe.images import read_bytes
from sgpipe.records import SCHEMA, Attribute, Box, BoxOrigin, Record, Relation, RelationOrigin, from_table, to_table
from sgpipe.sources.import_run import ROWS_PER_SHARD
from sgpipe.sources.opening import open_parent
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.pair import HeadMatcher, normalise_predicate, noun_lemmas
from sgpipe.storage.health_rules import CLAIMS
from sgpipe.storage.index_build import FAULTS, configure, interruptible
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.run_folder import RunFiles, RunFolder
from sgpipe.storage.shards import IMAGE_COLUMN, SOURCES, count_rows, open_shard, shard_name, with_images, write_copy
from sgpipe.utils.boxes import iou, xywh_to_xyxy
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import fingerprint

Match: TypeAlias = Literal["file", "id", "hash"]
Database: TypeAlias = duckdb.DuckDBPyConnection
Item = TypeVar("Item")
Groups: TypeAlias = dict[tuple[Hashable, int], tuple[int, list[Any]]]  # of equal items of several runs, numbered

MERGED = "merged."  # prefix of these counts of a shard:
UNITED = ("united_objects", "united_relations", "contradictory_classes", "contradictory_relations")
_MEMORY, _FILES_AT_ONCE = "300MB", 4096
_PLACE = pa.schema([("start", pa.int64()), ("size", pa.int64()), ("content", pa.string())])  # of an image; its hash
_FILE_START = 64 << 10  # bytes of a file that tell it from another of the same name
_PIXEL = 1.0  # boxes of which no edge differs by more are the same, however small they are
_STRONGEST = {name: rank for kind in (BoxOrigin, RelationOrigin) for rank, name in enumerate(get_args(kind))}
_SIDES = {text: claim for claim, texts in CLAIMS.items() if claim[1] for text in texts}  # axis and side of a predicate

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
    "file": "file_name in (select file_name from names group by all having count(distinct root) > 1)",
    "id": "false",
    "hash": "content is null",
}
_KEYS = {"file": "file_name", "id": "image_id", "hash": "coalesce(content, digest, concat(run, split, image_id))"}
# Rows of one key are of one image, unless sizes or files differ. Where a run has a key twice, split and id count, too.
# Error rows come last. The run with the most rows comes first, and names the image and its split; images that this
# would give the same split and id, or one split in two places, go to further splits.
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
        (select count(*) from members where place > 1 and failed) as replaced,
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
    least: float = 0.6,
    images: ImagePlace | None = None,
) -> Manifest:
    """Merge runs into `out`, and return its manifest; an earlier call that stopped is resumed.

    The header has under `matched` the numbers of `images`, of those `shared` by several runs, of names that stand for
    `different` images, of error rows that were `replaced` by the row of another run, and of `unread` files. Rows of one
    image have `match` in common. `least`: IoU from which boxes of one class are one object. `images`: if they moved.

    Raises UserError: a place is not a complete run, a shard cannot be read, or `out` is another run or in use.
    """
    inputs = dict[str, RunFiles]()
    for files in map(open_parent, places):
        shards = sorted(shard.sha256 for shard in files.manifest.shards)
        inputs[fingerprint({"run": files.manifest.run.get("fingerprint"), "shards": shards})] = files
    header, folder = _header(inputs, match, least, images), RunFolder(out)
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
        with interruptible(), duckdb.connect(scratch / "rows") as database, (scratch / "images").open("w+b") as kept:
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
                            rows, counts = _united(members, unit.split, least, kept)
                            manifest.commit(write_copy(out, unit, rows, counts))
                        advance(unit.rows, {})
            except FAULTS as error:
                raise UserError(f"the runs cannot be merged in {out} ({first_line(error)})") from None
        shutil.rmtree(scratch)
        manifest.run |= {"finished": True, "matched": matched}
        manifest.rewrite()
        title = f"{header['name']}: merged by sgpipe"
        folder.write_readme(title, f"`{SOURCES}` has the rows of single runs.", manifest)
    return manifest


def _header(inputs: Mapping[str, RunFiles], match: Match, least: float, images: ImagePlace | None) -> dict[str, Any]:
    """Return what the manifest says, also of the single runs, by their ids."""
    runs: dict[str, dict[str, Any]] = {}
    for number, files in inputs.items():
        run = files.manifest.run
        one = {"name": run.get("name") or "", "labels": run.get("labels"), "identities": Manifest.identities(run)}
        one["rows"] = sum(shard.rows for shard in files.manifest.shards)
        one["images"] = {split: absolute(root) for split, root in files.manifest.image_roots.locations.items()}
        runs |= run["runs"] if "merged" in run.get("identity", {}) else {number: one}
    runs = dict(sorted(runs.items()))
    if images is not None:
        runs = {run: one | {"images": dict.fromkeys(one["images"], absolute(images))} for run, one in runs.items()}
    labels = [runs[run]["labels"] for run in _ranked(runs) if runs[run]["labels"]]
    kinds = ("objects", "relations") if labels else ()
    return {
        "name": " + ".join(sorted({one["name"] for one in runs.values()})),
        "identity": {"merged": {run: one["images"] for run, one in runs.items()}, "match": match, "iou": least},
        "origin": [identity for one in runs.values() for identity in one["identities"]],
        "labels": {kind: list(dict.fromkeys(chain(*(each[kind] for each in labels)))) for kind in kinds} or None,
        "runs": runs,
        "images": {},
        "finished": False,
    }


def _ranked(runs: Mapping[str, Any]) -> list[str]:
    """Return the ids of runs, that of the most rows first."""
    return sorted(runs, key=lambda run: (-runs[run]["rows"], run))


def _read(
    database: Database, inputs: Mapping[str, RunFiles], runs: Mapping[str, Any], images: BinaryIO, *, hashed: bool
) -> None:
    """Read all rows of single runs, and where the images of each of these are; those in the shards go to `images`."""
    database.register("empty", _without_images(SCHEMA.empty_table(), images, hashed=hashed))
    database.execute("create table leaves as select ''::varchar as run, * from empty")
    database.execute("create table roots (run varchar, split varchar, root varchar)")
    database.execute("create table ranks (run varchar, rank int)")
    for rank, run in enumerate(_ranked(runs)):
        database.execute("insert into ranks values (?, ?)", (run, rank))
        for split, root in runs[run]["images"].items():
            database.execute("insert into roots values (?, ?, ?)", (run, split, root))
    others = ", ".join(f"coalesce(source.{name}, {name}) as {name}" for name in SCHEMA.names if name != "split")
    places: dict[bool, str] = {}  # a run with images in its shards, and one without
    for number, files in inputs.items():
        rows = f"'{number}' as run, {', '.join(SCHEMA.names)}", "shards"
        if "merged" in files.manifest.run.get("identity", {}):
            rows = f"source.run, source.split, {others}", f"(select *, unnest({SOURCES}) as source from shards)"
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
                database.execute(f"insert into leaves by name select {rows[0]}, start, size, content from {rows[1]}")


def _without_images(table: pa.Table, images: BinaryIO, *, hashed: bool) -> pa.Table:
    """Return the rows with `start` and `size` of their image files in `images`, to which these are added."""
    places: list[dict[str, Any]] = []
    for image in table[IMAGE_COLUMN] if IMAGE_COLUMN in table.column_names else [{}] * len(table):
        content = image["bytes"].as_py() if image else None
        places.append({} if content is None else {"start": images.tell(), "size": images.write(content)})
        if hashed and content is not None:
            places[-1]["content"] = hashlib.sha256(content).hexdigest()
    columns = pa.Table.from_pylist(places, _PLACE).columns
    rows = table.select([name for name in table.column_names if name != IMAGE_COLUMN])
    return pa.table([*rows.columns, *columns], [*rows.column_names, *_PLACE.names])


def _plan(database: Database, match: Match) -> None:
    """Find out which rows are of one image, and where each image goes."""
    database.execute(_NAMES)
    wanted = f"select distinct root, file_name from names where not failed and root <> '' and {_WANTED[match]}"
    for batch in database.cursor().sql(wanted).to_arrow_reader(_FILES_AT_ONCE):
        most = -1 if match == "hash" else _FILE_START
        digests = [_digest(each["root"], each["file_name"], most) for each in batch.to_pylist()]
        database.register("digests", batch.append_column("digest", pa.array(digests, pa.string())))
        database.execute("insert into files from digests")
    database.execute(_PLAN.format(key=_KEYS[match]))
    database.execute(_SORTED)


def _digest(root: str, file_name: str, most: int) -> str | None:
    """Return the hash of an image file, or of its first bytes; None: it cannot be read."""
    try:
        images = image_root(root)
        file = images.open(file_name) if most < 0 else images.open(file_name, most)
        return hashlib.sha256(read_bytes(file, most)).hexdigest()
    except (UserError, FileNotFoundError):
        return None


def _units(database: Database) -> tuple[list[ShardEntry], dict[str, str]]:
    found = database.execute(_UNITS).fetchall()
    names = {(split, 1): split for split, *_ in found}
    units, images = [], dict[str, str]()
    for split, variant, root, start, stop in found:
        if (split, variant) not in names:
            free = (f"{split}_{number}" for number in count_from(variant))
            names[split, variant] = next(name for name in free if name not in names.values())
        name = names[split, variant]
        images |= {name: root} if root else {}
        units.append(ShardEntry(name, start, stop, shard_name(name, start, stop), "", 0))
    return units, images


def _united(members: pa.Table, split: str, least: float, images: BinaryIO) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows of a shard, made from those of single runs, and its counts."""
    first = np.flatnonzero(np.diff(members["slot"].to_numpy(), prepend=-1))
    sizes = np.diff([*first, len(members)])
    shared = np.repeat(sizes > 1, sizes)
    records = iter(from_table(members.filter(shared).select(SCHEMA.names)))
    groups = [list(islice(records, size)) for size in sizes[sizes > 1].tolist()]
    made = [unite([each for each in group if each.ok] or group[:1], least) for group in groups]
    alone = members.take(first[sizes == 1]).select(SCHEMA.names).cast(SCHEMA)
    rows = pa.concat_tables([alone, to_table(record for record, _ in made)])
    rows = rows.take(np.argsort(np.argsort(sizes > 1, kind="stable")))
    rows = rows.set_column(SCHEMA.names.index("split"), SCHEMA.field("split"), pa.array([split] * len(rows)))
    if members["start"].null_count < len(members):
        places = list(zip(members["start"].to_pylist(), members["size"].to_pylist(), strict=True))
        ends = zip(first, first + sizes, strict=True)
        chosen = [next((each for each in places[start:stop] if each[1]), (0, 0)) for start, stop in ends]
        images.flush()
        rows = with_images(rows, [os.pread(images.fileno(), size, start) or None for start, size in chosen])
    whole = pa.array(np.arange(len(members)), mask=~shared)  # of rows of one run, `sources` only says which that is
    parts = {name: members[name].take(whole) for name in SCHEMA.names}
    parts |= {name: members[name] for name in ("run", "split")}
    flat = pa.StructArray.from_arrays([part.combine_chunks() for part in parts.values()], list(parts))
    sources = pa.ListArray.from_arrays(pa.array([*first, len(members)], pa.int32()), flat)
    found = sum((each for _, each in made), Counter[str]())
    return rows.append_column(SOURCES, sources), count_rows(rows) | {f"{MERGED}{what}": found[what] for what in found}


def unite(records: Sequence[Record], least: float) -> tuple[Record, Counter[str]]:
    """Return one record with what several say of an image, one of each run, and counts of what was united.

    Boxes are one object if each two of them are of different runs, overlap by `least` (IoU), and have the same class or
    synonyms; those that overlap most come first. An object has the box and class of its strongest member: annotated
    before detected before grounded, then by score and size. A relation is there once, as its strongest origin has it,
    with all origins. All else is united where it is equal.
    """
    runs = [run for run, record in enumerate(records) for _ in record.objects]
    boxes = [box for record in records for box in record.objects]
    objects, counts = _objects(runs, boxes, least)
    numbers = iter([number for _, number in sorted((index, n) for n, each in enumerate(objects) for index in each)])
    captions, triplets, pairs, relations = (Groups() for _ in range(4))
    said: list[list[int]] = []  # by run: the numbers of its captions
    claims: dict[Hashable, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))  # by axis and run: sides
    for run, record in enumerate(records):
        own = list(islice(numbers, len(record.objects)))
        texts = [replace(each, boxes=[own[box] for box in each.boxes]) for each in record.captions]
        said.append(_add(captions, (((each.text, each.scope, *each.boxes), each) for each in texts)))
        stated = [replace(each, caption=said[run][each.caption]) for each in record.triplets]
        _add(triplets, ((astuple(each)[:7], each) for each in stated))
        linked = [replace(each, subject=own[each.subject], object=own[each.object]) for each in record.pairs]
        _add(pairs, (((each.subject, each.object), each) for each in linked))
        related = [replace(each, subject=own[each.subject], object=own[each.object]) for each in record.relations]
        _add(relations, (((r.subject, r.object, normalise_predicate(r.predicate)), r) for r in related))
        for each in related:
            axis, side = _SIDES.get(each.predicate.lower(), (None, 0))
            ends = min(each.subject, each.object), max(each.subject, each.object)
            claims[axis, *ends][run].add(side if each.subject == ends[0] else -side)
    counts["united_relations"] = sum(len(same) > 1 for _, same in relations.values())
    counts["contradictory_relations"] = sum(not set.intersection(*sides.values()) for sides in claims.values())
    united = replace(
        records[0],
        objects=[_object([(boxes[index], said[runs[index]]) for index in members]) for members in objects],
        captions=[same[0] for _, same in captions.values()],
        triplets=[max(same, key=lambda each: None not in astuple(each)) for _, same in triplets.values()],
        pairs=[replace(same[0], predicates=_distinct(each.predicates for each in same)) for _, same in pairs.values()],
        relations=[_relation(same) for _, same in relations.values()],
        left_out=reduce(or_, (Counter(record.left_out) for record in records)),  # the larger numbers
    )
    return united, counts


def _add(groups: Groups, items: Iterable[tuple[Hashable, Any]]) -> list[int]:
    """Add the items of a run by their keys, in two groups what it has twice; return the number of the group of each."""
    times, numbers = Counter[Hashable](), []
    for key, item in items:
        times[key] += 1
        number, same = groups.setdefault((key, times[key]), (len(groups), []))
        same.append(item)
        numbers.append(number)
    return numbers


def _objects(runs: Sequence[int], boxes: Sequence[Box], least: float) -> tuple[list[list[int]], Counter[str]]:
    """Return the indices of the boxes of each object, and counts of united objects and of contradictory classes."""
    first, second = np.triu_indices(len(boxes), 1)
    other = np.array(runs)[first] != np.array(runs)[second]
    first, second = first[other], second[other]
    xyxy = xywh_to_xyxy(np.array([box.bbox for box in boxes], float).reshape(-1, 4))
    overlap = iou(xyxy[first], xyxy[second])
    overlap[np.abs(xyxy[first] - xyxy[second]).max(1, initial=0) <= _PIXEL] += 1  # before all others
    order = np.argsort(-overlap, kind="stable")[: np.count_nonzero(overlap >= least)]
    near = list(zip(first[order].tolist(), second[order].tolist(), strict=True))
    alike = {(i, j): are_synonyms(boxes[i].category, boxes[j].category) for i, j in near}
    close = {(i, j) for i, j in near if alike[i, j] and boxes[i].iscrowd == boxes[j].iscrowd}
    members = [[index] for index in range(len(boxes))]  # by box: the boxes of its object, in one list that they share
    for i, j in near:
        if all((min(a, b), max(a, b)) in close for a in members[i] for b in members[j]):
            members[i] += members[j]
            for index in members[j]:
                members[index] = members[i]
    objects = [sorted(each) for index, each in enumerate(members) if index == min(each)]
    apart = {(min(members[i]), min(members[j])) for i, j in near if not alike[i, j]}
    of_runs = {each[0]: {runs[index] for index in each} for each in objects}  # no run has two contradictory objects
    wrong = sum(not of_runs[i] & of_runs[j] for i, j in apart)
    return objects, Counter(united_objects=sum(len(each) > 1 for each in objects), contradictory_classes=wrong)


@lru_cache(1 << 16)
def are_synonyms(first: str, second: str) -> bool:
    """Return whether two classes have one name, in any case and number, or one names the other ("man": person)."""
    first, second = normalise_predicate(first), normalise_predicate(second)
    ways = (first, second), (second, first)
    return first == second or any(a in noun_lemmas(b) or a in _matcher().classes(b) for a, b in ways)


@cache
def _matcher() -> HeadMatcher:
    """Return the classes that nouns name by the synonyms of COCO and Objects365."""
    tables = [packaged_synonyms(dataset) for dataset in ("coco", "objects365")]
    return HeadMatcher({name: _distinct(table.get(name, ()) for table in tables) for table in tables for name in table})


def _distinct(lists: Iterable[Iterable[Item]]) -> list[Item]:
    return list(dict.fromkeys(chain.from_iterable(lists)))


def _object(members: Sequence[tuple[Box, Sequence[int]]]) -> Box:
    """Return one object of boxes, each with the new numbers of the captions of its run."""
    members = sorted(members, key=lambda each: (_strength(each[0].origin), -(each[0].score or 0), each[0].rank))
    boxes = [box for box, _ in members]
    named = _distinct(
        [(a.name, None if a.caption is None else said[a.caption]) for a in box.attributes] for box, said in members
    )
    phrase = next(filter(None, map(attrgetter("phrase"), boxes)), None)
    segmentation = next(filter(None, map(attrgetter("segmentation"), boxes)), None)
    return replace(boxes[0], phrase=phrase, segmentation=segmentation, attributes=[Attribute(*each) for each in named])


def _relation(same: Sequence[Relation]) -> Relation:
    best = min(same, key=lambda each: (_strength(each.origins[0]), -1 if each.confidence is None else -each.confidence))
    return replace(best, origin="+".join(sorted(_distinct(each.origins for each in same), key=_strength)))


def _strength(origin: str) -> tuple[int, str]:
    """Return a key that sorts origins, the strongest first and those of other programs last."""
    return _STRONGEST.get(origin, len(_STRONGEST)), origin
