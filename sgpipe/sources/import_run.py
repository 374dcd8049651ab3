"""`sgpipe import`: human annotations become the same shards that `sgpipe generate` makes, resumably."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.images import ImageError, read_image, read_size
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, clip_objects, mark_failed
from sgpipe.storage.manifest import Manifest, ShardEntry, Summary, add_up
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import revision_of, shard_name, write_shard
from sgpipe.utils import __version__
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import file_sha256

ROWS_PER_SHARD = 512
_PROBLEM = "problem."  # how the counts of a shard name its problems


@dataclass
class _Unit:
    """Consecutive records of the source, and the problems met while they were read."""

    start: int
    stop: int
    records: list[Record] = field(default_factory=list)
    problems: ProblemCounts = field(default_factory=Counter)


def import_annotations(
    source: AnnotationSource,
    images: Path,
    out: Path,
    progress: Progress,
    *,
    embed: bool = False,
    limit: int | None = None,
    retry_failed: bool = False,
) -> Summary:
    """Write the annotated images into `out`, going on where an earlier import of the same stopped.

    Args:
        images: folder that the file names are relative to. Images are only opened to embed them, or where
            their size is not annotated.
        embed: keep the image files in the shards. Those that the source holds are kept anyway.
        limit: only so many images, the first ones.
        retry_failed: do shards with error rows again.

    Raises:
        UserError: something is wrong with the files or the folder; what was committed stays.
    """
    if not images.is_dir():
        raise UserError(f"image folder not found: {images}")
    if not re.fullmatch(r"\w{1,64}", source.split):
        raise UserError(f"--split {source.split!r}: expected letters, digits and underscores")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected at least 1")
    embed = embed or source.image is not None
    folder = RunFolder(out)
    with folder.lock():
        manifest = _open_manifest(source, images, folder, embed, progress)
        folder.sweep(manifest)
        _describe(source, folder, manifest)
        wanted = _Wanted(folder, manifest, retry_failed)
        units, read = _units(source, wanted, limit), 0
        with progress.images(None, "importing") as advance:
            for unit in units:
                read += len(unit.records)
                if wanted.wants(unit.start):
                    shard = _write(unit, source, images, folder.root, embed, wanted.revision(unit.start))
                    wanted.commit(shard)
                    advance(shard.rows, shard.counts)
        folder.sweep(manifest)
        _describe(source, folder, manifest)
    if not read:
        raise UserError(f"{source.files['annotations']} holds no image that can be imported")
    return _summarise(manifest, read)


def _open_manifest(
    source: AnnotationSource, images: Path, folder: RunFolder, embed: bool, progress: Progress
) -> Manifest:
    """The folder's manifest, if it is of this very import; a new one in an empty folder."""
    progress.say(f"reading {source.files['annotations']}")
    now = {
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
        "identity": now,
        "images": {source.split: str(images.resolve())},
        "labels": classes and {"objects": list(classes.objects), "relations": list(classes.relations)},
    }
    return folder.open(run)


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


class _Wanted:
    """Which ranges of rows are to be written: those without a shard, and the shards to be made again."""

    def __init__(self, folder: RunFolder, manifest: Manifest, retry_failed: bool) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = {shard.start: shard for shard in manifest.shards}
        again = folder.lost(manifest)
        again += [shard for shard in manifest.shards if retry_failed and shard.counts.get("errors")]
        self._again = {shard.start for shard in again}

    def stop(self, start: int) -> int:
        """Where the range that begins at row `start` ends."""
        if start in self._shards:
            return self._shards[start].stop
        return min([start + ROWS_PER_SHARD, *(other for other in self._shards if other > start)])

    def wants(self, start: int) -> bool:
        return start not in self._shards or start in self._again

    def revision(self, start: int) -> int:
        return revision_of(self._shards[start].file) + 1 if start in self._shards else 0

    def commit(self, shard: ShardEntry) -> None:
        superseded = self.manifest.commit(shard)
        if superseded is not None and superseded.file != shard.file:
            (self.folder.root / superseded.file).unlink(missing_ok=True)


def _units(source: AnnotationSource, wanted: _Wanted, limit: int | None) -> Iterator[_Unit]:
    """All records of the source in ranges, each with the problems since the one before."""
    problems: ProblemCounts = Counter()
    seen: ProblemCounts = Counter()
    unit = _Unit(0, wanted.stop(0))
    for record in _first(_distinct(source.read(problems), problems), limit):
        if unit.start + len(unit.records) == unit.stop:
            yield unit
            unit = _Unit(unit.stop, wanted.stop(unit.stop))
        unit.records.append(record)
        unit.problems += problems - seen
        seen = problems.copy()
    unit.problems += problems - seen
    if unit.records:
        yield unit


def _distinct(records: Iterable[Record], problems: ProblemCounts) -> Iterator[Record]:
    """Of records with one image id the first."""
    seen = set()
    for record in records:
        if record.image_id in seen:
            problems["duplicate_images"] += 1
        else:
            seen.add(record.image_id)
            yield record


def _first(records: Iterable[Record], limit: int | None) -> Iterator[Record]:
    """The first `limit` records; what follows them is not even looked at."""
    for number, record in enumerate(records, 1):
        yield record
        if number == limit:
            return


def _write(unit: _Unit, source: AnnotationSource, images: Path, root: Path, embed: bool, revision: int) -> ShardEntry:
    contents = [_finish(record, source, images, embed, unit.problems) for record in unit.records]
    stop = unit.start + len(unit.records)
    name = shard_name(source.split, unit.start, stop, revision)
    shard = write_shard(root, name, source.split, unit.start, unit.records, {}, contents if embed else None)
    shard.counts.update({f"{_PROBLEM}{key}": count for key, count in unit.problems.items() if count})
    return shard


def _finish(
    record: Record, source: AnnotationSource, images: Path, embed: bool, problems: ProblemCounts
) -> bytes | None:
    """Give the record its size, clip its boxes, and read its image if it is to be embedded."""
    image = None
    try:
        if record.ok and not (record.width and record.height):
            record.width, record.height = read_size(images, record.file_name)
        if record.ok and embed:
            image = source.image(record) if source.image else read_image(images, record)
    except ImageError as error:
        mark_failed(record, str(error))
    if record.ok:
        clip_objects(record, problems)
    return image


def _describe(source: AnnotationSource, folder: RunFolder, manifest: Manifest) -> None:
    origin = f"Imported from {source.files['annotations'].name}; relations by people have no confidence."
    folder.write_readme(f"{source.dataset}: imported by sgpipe", origin, manifest)


def _summarise(manifest: Manifest, read: int) -> Summary:
    summary = add_up(manifest, read, {})
    for key in [key for key in summary.counts if key.startswith(_PROBLEM)]:
        summary.problems[key.removeprefix(_PROBLEM)] = summary.counts.pop(key)
    return summary
