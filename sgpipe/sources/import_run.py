"""`sgpipe import`: human annotations become the same shards that `sgpipe generate` writes; it can
be resumed.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, absolute, check_images
from sgpipe.files.locations import text_sha256
from sgpipe.images import read_image, read_size
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, clip_objects, error_row
from sgpipe.sources.detections import settle_records
from sgpipe.storage.losses import PROBLEM
from sgpipe.storage.manifest import ShardEntry, Summary, add_up
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import revision_of, shard_name, write_shard
from sgpipe.utils import BoxForm, __version__
from sgpipe.utils.console import Progress, count

ROWS_PER_SHARD = 512


def import_annotations(
    source: AnnotationSource,
    images: ImagePlace,
    out: Path,
    progress: Progress,
    *,
    embed: bool = False,
    limit: int | None = None,
    retry_failed: bool = False,
    boxes: BoxForm | None = None,
) -> Summary:
    """Write the annotated images into `out`, and resume if an earlier import of the same files was
    interrupted.

    Args:
        images: where the images are. They are opened only to embed them, or if their size is not
            annotated.
        embed: store the image files in the shards. Those that the source itself contains are always
            stored.
        retry_failed: import shards with error rows again.
        boxes: the form of the boxes, if it is not that of the format.

    Raises UserError: a file or folder cannot be used, or boxes certainly have another form;
    committed shards remain.
    """
    check_images(images)
    if not re.fullmatch(r"\w{1,64}", source.split):
        raise UserError(f"--split {source.split!r}: expected letters, digits and underscores")
    embed = embed or source.image is not None
    if boxes is not None:
        source = replace(source, options={**source.options, "boxes": boxes})
    folder = RunFolder(out)
    with folder.lock():
        progress.say(f"reading {source.files['annotations']}")
        classes = source.classes
        identity = {
            **{
                "sgpipe": __version__,
                "import": source.dataset,
                "split": source.split,
                "embed": embed,
            },
            "files": {role: text_sha256(path) for role, path in source.files.items()},
            "options": dict(source.options),
        }
        description = {
            **{
                "name": source.dataset,
                "identity": identity,
                "images": {source.split: absolute(images)},
            },
            "labels": (
                classes and {"objects": list(classes.objects), "relations": list(classes.relations)}
            ),
            **{"origin": list(map(dict, source.origin)), "finished": False},
        }
        manifest = folder.open(description)
        shards = {shard.start: shard for shard in manifest.shards}
        redo = {shard.start for shard in manifest.lost(folder.storage)}
        redo |= {
            start for start, shard in shards.items() if retry_failed and shard.counts.get("errors")
        }
        known = manifest.run.get("limit")  # of a finished import
        is_finished = manifest.run["finished"] and (
            known is None or (limit is not None and limit <= known)
        )
        read = written = 0
        problems: ProblemCounts = Counter()
        if not is_finished or redo:
            with progress.images(None, "importing") as advance:
                for start, records, found in _read_units(source, shards, limit, problems):
                    read += len(records)
                    if start in shards and start not in redo:
                        continue
                    contents, notes = _finish(
                        records, source, images, embed, found, examine=start == 0
                    )
                    for note in notes:
                        progress.say(f"NOTE: {note}")
                    revision = revision_of(shards[start].file) + 1 if start in shards else 0
                    name = shard_name(source.split, start, start + len(records), revision)
                    shard = write_shard(
                        folder.root, name, source.split, start, records, {}, contents
                    )
                    shard.counts.update(
                        {f"{PROBLEM}{key}": number for key, number in found.items() if number}
                    )
                    manifest.commit(shard)
                    written += 1
                    advance(shard.rows, shard.counts)
            if not read:
                why = ", ".join(
                    f"{key}: {number:,}" for key, number in sorted(problems.items()) if number
                )
                raise UserError(
                    f"{source.files['annotations']} contains no image to import"
                    f" ({why or 'it is empty'})"
                )
            origin = (
                f"Imported from {source.files['annotations'].name}; human-annotated relations have"
                " no confidence."
            )
            folder.write_readme(f"{source.dataset}: imported by sgpipe", origin, manifest)
            finished = {"finished": True, "limit": limit if read == limit else None}
            if manifest.run | finished != manifest.run:
                manifest.run |= finished
                manifest.rewrite()
        folder.sweep(manifest)
    rows = sum(shard.rows for shard in manifest.shards)
    if not written:
        progress.say(
            f"nothing left to do: {count(rows, 'image')} of {manifest.root} imported before"
        )
    summary = add_up(manifest, read or rows, {})
    for key in [key for key in summary.counts if key.startswith(PROBLEM)]:
        summary.problems[key.removeprefix(PROBLEM)] = summary.counts.pop(key)
    return summary


def _read_units(
    source: AnnotationSource,
    shards: Mapping[int, ShardEntry],
    limit: int | None,
    problems: ProblemCounts,
) -> Iterator[tuple[int, list[Record], ProblemCounts]]:
    """Yield units, each with its start, and with the problems found up to the next; they end where
    shards do.
    """
    records = islice(_distinct(source.read(problems), problems), limit)
    start = 0
    seen = problems.copy()
    first = next(records, None)
    while first is not None:
        later = [other for other in shards if other > start]
        stop = shards[start].stop if start in shards else min([start + ROWS_PER_SHARD, *later])
        unit = [first, *islice(records, stop - start - 1)]
        first = next(records, None)
        yield start, unit, problems - seen
        start = stop
        seen = problems.copy()


def _distinct(records: Iterable[Record], problems: ProblemCounts) -> Iterator[Record]:
    seen = set[str]()
    for record in records:
        problems["duplicate_images"] += record.image_id in seen
        if record.image_id not in seen:
            seen.add(record.image_id)
            yield record


def _finish(
    records: list[Record],
    source: AnnotationSource,
    images: ImagePlace,
    embed: bool,
    problems: ProblemCounts,
    *,
    examine: bool,
) -> tuple[list[bytes | None] | None, list[str]]:
    """Give records their image sizes and clip their boxes; return their image files to embed, and
    what is doubtful.
    """
    contents: list[bytes | None] = []
    for record in records:
        image = None
        with error_row(record):
            if record.ok and not (record.width and record.height):
                record.width, record.height = read_size(images, record.file_name)
                for box in (
                    record.objects
                ):  # run lengths that have another size, which was unknown until now
                    value = json.loads(box.segmentation or "[]")
                    if isinstance(value, dict) and value["size"] != [record.height, record.width]:
                        box.segmentation = None
                        problems["segmentations"] += 1
            if record.ok and embed:
                image = source.image(record) if source.image else read_image(images, record)
        contents.append(image)
    notes = settle_records(records, source, source.options.get("boxes"), examine=examine)
    for record in records:
        if record.ok:
            clip_objects(record, problems)
    return contents if embed else None, notes
