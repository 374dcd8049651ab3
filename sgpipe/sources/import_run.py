"""`sgpipe import`: human annotations become the same shards that `sgpipe generate` writes; it can be resumed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from sgpipe.errors import StoreError, UserError
from sgpipe.files.image_roots import ImagePlace, absolute, check_images
from sgpipe.files.locations import Location
from sgpipe.files.text_files import text_sha256
from sgpipe.images import ImageError, read_image, read_size
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, clip_objects, mark_failed
from sgpipe.sources.doubts import change_form, doubt_records
from sgpipe.storage.manifest import Manifest, ShardEntry, Summary, add_up
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import revision_of, shard_name, write_shard
from sgpipe.utils import BoxForm, __version__
from sgpipe.utils.console import Progress, count

ROWS_PER_SHARD = 512
_PROBLEM = "problem."  # prefix of the problem counts of a shard


@dataclass
class _ImportUnit:
    """Consecutive records of the source, and the problems found while reading them."""

    start: int
    stop: int
    records: list[Record] = field(default_factory=list)
    problems: ProblemCounts = field(default_factory=Counter)


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
    """Write the annotated images into `out`, and resume if an earlier import of the same files was interrupted.

    Args:
        images: where the images are, by names that are relative to it. They are opened only to embed them, or if their
            size is not annotated.
        embed: store the image files in the shards. Those that the source itself contains are always stored.
        limit: import only the first `limit` images.
        retry_failed: import shards with error rows again.
        boxes: the form of the boxes, if it is not that of the format.

    Raises UserError: a file or folder cannot be used, or boxes certainly have another form; committed shards remain.
    """
    check_images(images)
    if not re.fullmatch(r"\w{1,64}", source.split):
        raise UserError(f"--split {source.split!r}: expected letters, digits and underscores")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    embed = embed or source.image is not None
    if boxes is not None:
        source = replace(source, options={**source.options, "boxes": boxes})
    folder = RunFolder(out)
    with folder.lock():
        manifest = _open_manifest(source, images, folder, embed, progress)
        schedule = _Schedule(folder, manifest, retry_failed)
        if _is_finished(manifest, limit) and not schedule.repeats:
            return _nothing_left(manifest, limit, progress)
        folder.sweep(manifest)
        _write_readme(source, folder, manifest)
        units, read, written = _read_units(source, schedule, limit), 0, 0
        with progress.images(None, "importing") as advance:
            for unit in units:
                read += len(unit.records)
                if schedule.needs(unit.start):
                    for record in unit.records:
                        _set_size(record, images)
                    if unit.start == 0:
                        for note in doubt_records(unit.records, source, boxes):
                            progress.say(f"NOTE: {note}")
                    shard = _write(unit, source, images, folder.root, embed, schedule.revision(unit.start))
                    schedule.commit(shard)
                    written += 1
                    advance(shard.rows, shard.counts)
        if not read:
            raise UserError(f"{source.files['annotations']} contains no image that can be imported")
        folder.sweep(manifest)
        _write_readme(source, folder, manifest)
        _finish(manifest, limit if read == limit else None)
        if not written:
            _nothing_left(manifest, limit, progress)
    return _summarise(manifest, read)


def _is_finished(manifest: Manifest, limit: int | None) -> bool:
    """Return whether the import is complete, up to `limit` images, so that the source need not be read again."""
    whole = manifest.run.get("limit")
    return manifest.run.get("finished") is True and (whole is None or (limit is not None and limit <= whole))


def _nothing_left(manifest: Manifest, limit: int | None, progress: Progress) -> Summary:
    """Say where the finished import is, and how much of it was asked for."""
    there = sum(shard.rows for shard in manifest.shards)
    asked = f"; the first {limit:,} were asked for" if limit is not None and limit < there else ""
    have = "has" if there == 1 else "have"
    progress.say(f"nothing left to do: {count(there, 'image')} in {manifest.root} {have} been imported{asked}")
    return _summarise(manifest, there)


def _open_manifest(
    source: AnnotationSource, images: ImagePlace, folder: RunFolder, embed: bool, progress: Progress
) -> Manifest:
    """Return the folder's manifest, if it belongs to this import; a new one if the folder is empty."""
    progress.say(f"reading {source.files['annotations']}")
    identity = {
        "sgpipe": __version__,
        "import": source.dataset,
        "split": source.split,
        "embed": embed,
        "files": {role: _sha256(path) for role, path in source.files.items()},
        "options": dict(source.options),
    }
    classes = source.classes
    run = {
        "name": source.dataset,
        "identity": identity,
        "images": {source.split: absolute(images)},
        "labels": classes and {"objects": list(classes.objects), "relations": list(classes.relations)},
        "origin": [dict(identity) for identity in source.origin],
        "finished": False,
    }
    return folder.open(run)


def _finish(manifest: Manifest, limit: int | None) -> None:
    """Keep that the import is complete, up to `limit` images."""
    finished = {"finished": True, "limit": limit}
    if manifest.run | finished != manifest.run:
        manifest.run |= finished
        manifest.rewrite()


def _sha256(path: Location) -> str:
    try:
        return text_sha256(path)
    except StoreError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


class _Schedule:
    """The ranges of rows to write: those without a shard, and those whose shard is lost or to be retried."""

    def __init__(self, folder: RunFolder, manifest: Manifest, retry_failed: bool) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = {shard.start: shard for shard in manifest.shards}
        repeat = folder.lost(manifest)
        repeat += [shard for shard in manifest.shards if retry_failed and shard.counts.get("errors")]
        self._repeat = {shard.start for shard in repeat}

    @property
    def repeats(self) -> bool:
        """Whether there is a shard to write again."""
        return bool(self._repeat)

    def stop(self, start: int) -> int:
        """Return the end of the range that begins at row `start`."""
        if start in self._shards:
            return self._shards[start].stop
        return min([start + ROWS_PER_SHARD, *(other for other in self._shards if other > start)])

    def needs(self, start: int) -> bool:
        return start not in self._shards or start in self._repeat

    def revision(self, start: int) -> int:
        return revision_of(self._shards[start].file) + 1 if start in self._shards else 0

    def commit(self, shard: ShardEntry) -> None:
        superseded = self.manifest.commit(shard)
        if superseded is not None and superseded.file != shard.file:
            (self.folder.root / superseded.file).unlink(missing_ok=True)


def _read_units(source: AnnotationSource, schedule: _Schedule, limit: int | None) -> Iterator[_ImportUnit]:
    """Yield all records of the source in units, each with the problems found since the previous one."""
    problems: ProblemCounts = Counter()
    seen: ProblemCounts = Counter()
    unit = _ImportUnit(0, schedule.stop(0))
    for record in islice(_distinct(source.read(problems), problems), limit):
        if unit.start + len(unit.records) == unit.stop:
            yield unit
            unit = _ImportUnit(unit.stop, schedule.stop(unit.stop))
        unit.records.append(record)
        unit.problems += problems - seen
        seen = problems.copy()
    unit.problems += problems - seen
    if unit.records:
        yield unit


def _distinct(records: Iterable[Record], problems: ProblemCounts) -> Iterator[Record]:
    """Yield the records without those that repeat an image id."""
    seen = set()
    for record in records:
        if record.image_id in seen:
            problems["duplicate_images"] += 1
        else:
            seen.add(record.image_id)
            yield record


def _write(
    unit: _ImportUnit, source: AnnotationSource, images: ImagePlace, root: Path, embed: bool, revision: int
) -> ShardEntry:
    contents = [_complete(record, source, images, embed, unit.problems) for record in unit.records]
    stop = unit.start + len(unit.records)
    name = shard_name(source.split, unit.start, stop, revision)
    shard = write_shard(root, name, source.split, unit.start, unit.records, {}, contents if embed else None)
    shard.counts.update({f"{_PROBLEM}{key}": count for key, count in unit.problems.items() if count})
    return shard


def _set_size(record: Record, images: ImagePlace) -> None:
    try:
        if record.ok and not (record.width and record.height):
            record.width, record.height = read_size(images, record.file_name)
    except ImageError as error:
        mark_failed(record, str(error))


def _complete(
    record: Record, source: AnnotationSource, images: ImagePlace, embed: bool, problems: ProblemCounts
) -> bytes | None:
    """Clip the boxes of a record, and return its image file if it is to be embedded."""
    image = None
    try:
        if record.ok and embed:
            image = source.image(record) if source.image else read_image(images, record)
    except ImageError as error:
        mark_failed(record, str(error))
    if record.ok:
        if form := source.options.get("boxes"):
            change_form(record, source.boxes, form)
        clip_objects(record, problems)
    return image


def _write_readme(source: AnnotationSource, folder: RunFolder, manifest: Manifest) -> None:
    origin = f"Imported from {source.files['annotations'].name}; human-annotated relations have no confidence."
    folder.write_readme(f"{source.dataset}: imported by sgpipe", origin, manifest)


def _summarise(manifest: Manifest, read: int) -> Summary:
    summary = add_up(manifest, read, {})
    for key in [key for key in summary.counts if key.startswith(_PROBLEM)]:
        summary.problems[key.removeprefix(_PROBLEM)] = summary.counts.pop(key)
    return summary
