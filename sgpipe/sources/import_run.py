"""`sgpipe import`: human annotations become the same shards that `sgpipe generate` writes.

An interrupted import is resumed by the same call.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, absolute, check_images
from sgpipe.files.locations import Location, text_sha256
from sgpipe.images import read_image, read_size
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, clip_objects, error_row
from sgpipe.sources.doubts import settle_records
from sgpipe.storage.header import ClassLists, RunHeader
from sgpipe.storage.losses import PROBLEM
from sgpipe.storage.manifest import Manifest, ShardEntry, Summary, add_up
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import revision_of, shard_name, write_shard
from sgpipe.utils import BoxForm, __version__
from sgpipe.utils.console import Progress, count
from sgpipe.utils.hashing import folder_sha256

ROWS_PER_SHARD = 512


@dataclass(frozen=True)
class _Import:
    """An import that writes into a folder that it has locked.

    Attributes:
        embed: store the image files in the shards.
        boxes: their form, if it is not that of the format.
    """

    source: AnnotationSource
    images: ImagePlace
    folder: RunFolder
    manifest: Manifest
    progress: Progress
    embed: bool
    boxes: BoxForm | None

    def write_missing(self, redo: Collection[int], limit: int | None) -> tuple[int, int]:
        """Write the shards that are missing, or whose start is in `redo`.

        Returns:
            The number of images read, and of shards written.

        Raises:
            UserError: there is no image, or the annotations cannot be used.
        """
        shards = {shard.start: shard for shard in self.manifest.shards}
        problems: ProblemCounts = Counter()
        images_read = 0
        shards_written = 0
        with self.progress.images(None, "importing") as advance:
            for start, records, problems_of_unit in _read_units(
                self.source, shards, limit, problems
            ):
                images_read += len(records)
                if start in shards and start not in redo:
                    continue
                shard = self._write_shard(start, records, problems_of_unit, shards.get(start))
                self.manifest.commit(shard)
                shards_written += 1
                advance(shard.rows, shard.counts)
        if not images_read:
            listed = [f"{key}: {number:,}" for key, number in sorted((+problems).items())]
            raise UserError(
                f"{self.source.files['annotations']} contains no image to import"
                f" ({', '.join(listed) or 'it is empty'})"
            )
        return images_read, shards_written

    def _write_shard(
        self,
        start: int,
        records: list[Record],
        problems: ProblemCounts,
        earlier: ShardEntry | None,
    ) -> ShardEntry:
        """Write the shard of a unit, in place of an earlier one if there is one."""
        contents = self._complete(records, problems)
        # The first images tell whether the boxes have the stated form.
        for note in settle_records(records, self.source, self.boxes, examine=start == 0):
            self.progress.say(f"NOTE: {note}")
        for record in filter(lambda record: record.ok, records):
            clip_objects(record, problems)
        revision = revision_of(earlier.file) + 1 if earlier else 0
        split = self.source.split
        name = shard_name(split, start, start + len(records), revision)
        shard = write_shard(self.folder.root, name, split, start, records, {}, contents)
        for key, number in (+problems).items():
            shard.counts[f"{PROBLEM}{key}"] = number
        return shard

    def _complete(
        self, records: list[Record], problems: ProblemCounts
    ) -> list[bytes | None] | None:
        """Give records their image sizes; return the image files to embed, if any."""
        contents: list[bytes | None] = []
        for record in records:
            image = None
            with error_row(record):
                if record.ok and not (record.width and record.height):
                    record.width, record.height = read_size(self.images, record.file_name)
                    _drop_masks_of_other_sizes(record, problems)
                if record.ok and self.embed:
                    image = self._read_image(record)
            contents.append(image)
        return contents if self.embed else None

    def _read_image(self, record: Record) -> bytes | None:
        if self.source.image is not None:
            return self.source.image(record)
        return read_image(self.images, record)

    def finish(self, images_read: int, limit: int | None) -> None:
        """Write the README, and mark the run as finished, with `limit` where that cut it short."""
        self.folder.write_readme(
            f"{self.source.dataset}: imported by sgpipe",
            f"Imported from {self.source.files['annotations'].name}; human-annotated relations have"
            " no confidence.",
            self.manifest,
        )
        reached_limit = images_read == limit
        state: RunHeader = {"finished": True, "limit": limit if reached_limit else None}
        if self.manifest.run | state != self.manifest.run:
            self.manifest.run |= state
            self.manifest.rewrite()


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
    """Write the annotated images into `out`, or resume an interrupted import of the same files.

    Args:
        images: where the images are. They are opened only to embed them, or if their size is not
            annotated.
        embed: store the image files in the shards. Those that the source itself contains are always
            stored.
        retry_failed: import shards with error rows again.
        boxes: the form of the boxes, if it is not that of the format.

    Raises:
        UserError: a file or folder cannot be used, or boxes certainly have another form, or have
            one form alone; committed shards remain.
    """
    if boxes is not None and source.boxes is None:
        raise UserError(
            f"--boxes {boxes}: the boxes of {source.dataset} have a fixed form: omit it; a source of"
            " your own allows others by AnnotationSource(boxes=…)"
        )
    check_images(images)
    if not re.fullmatch(r"\w{1,64}", source.split):
        raise UserError(f"--split {source.split!r}: expected letters, digits and underscores")
    embed = embed or source.image is not None
    if boxes is not None:
        source = replace(source, options={**source.options, "boxes": boxes})
    folder = RunFolder(out)
    images_read = 0
    shards_written = 0
    with folder.lock():
        progress.say(f"reading {source.files['annotations']}")
        manifest = folder.open(_header(source, images, embed=embed))
        redo = _starts_to_redo(folder, manifest, retry_failed=retry_failed)
        if redo or not _is_finished(manifest, limit):
            writer = _Import(
                source=source,
                images=images,
                folder=folder,
                manifest=manifest,
                progress=progress,
                embed=embed,
                boxes=boxes,
            )
            images_read, shards_written = writer.write_missing(redo, limit)
            writer.finish(images_read, limit)
        folder.sweep(manifest)
    rows = sum(shard.rows for shard in manifest.shards)
    if not shards_written:
        progress.say(
            f"nothing left to do: {count(rows, 'image')} of {manifest.root} imported before"
        )
    return _summarise(manifest, images_read or rows)


def _summarise(manifest: Manifest, images: int) -> Summary:
    """Return the counts of all shards, with problems apart from the others."""
    summary = add_up(manifest, images, {})
    problem_keys = [key for key in summary.counts if key.startswith(PROBLEM)]
    for key in problem_keys:
        summary.problems[key.removeprefix(PROBLEM)] = summary.counts.pop(key)
    return summary


def _header(source: AnnotationSource, images: ImagePlace, *, embed: bool) -> RunHeader:
    """Return what the manifest states of the run."""
    labels: ClassLists | None = None
    if source.classes is not None:
        labels = {
            "objects": list(source.classes.objects),
            "relations": list(source.classes.relations),
        }
    identity = {
        "sgpipe": __version__,
        "import": source.dataset,
        "split": source.split,
        "embed": embed,
        "files": {role: _content_sha256(path) for role, path in source.files.items()},
        "options": dict(source.options),
    }
    return {
        "name": source.dataset,
        "identity": identity,
        "images": {source.split: absolute(images)},
        "labels": labels,
        "origin": [dict(identity) for identity in source.origin],
        "finished": False,
    }


def _content_sha256(place: Location) -> str:
    """Return the hash of a text file, or of all files below a folder."""
    if isinstance(place, Path) and place.is_dir():
        return folder_sha256(place)
    return text_sha256(place)


def _starts_to_redo(folder: RunFolder, manifest: Manifest, *, retry_failed: bool) -> set[int]:
    """Return the starts of the shards that are lost, or to be retried as they have error rows."""
    redo = {shard.start for shard in manifest.lost(folder.storage)}
    if retry_failed:
        redo |= {shard.start for shard in manifest.shards if shard.counts.get("errors")}
    return redo


def _is_finished(manifest: Manifest, limit: int | None) -> bool:
    """Return whether an earlier import has all images, or as many as `limit` asks for."""
    if not manifest.run["finished"]:
        return False
    earlier_limit = manifest.run.get("limit")
    return earlier_limit is None or (limit is not None and limit <= earlier_limit)


def _read_units(
    source: AnnotationSource,
    shards: Mapping[int, ShardEntry],
    limit: int | None,
    problems: ProblemCounts,
) -> Iterator[tuple[int, list[Record], ProblemCounts]]:
    """Yield units: the start, the records, and the problems counted up to the next one.

    Units end where shards do.
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


def _drop_masks_of_other_sizes(record: Record, problems: ProblemCounts) -> None:
    """Drop run lengths of another size than the image's, which was unknown when they were read."""
    for box in record.objects:
        outline = json.loads(box.segmentation or "[]")
        if isinstance(outline, dict) and outline["size"] != [record.height, record.width]:
            box.segmentation = None
            problems["segmentations"] += 1
