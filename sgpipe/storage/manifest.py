"""The manifest: the list of committed shards. A shard that it does not list does not exist.

It is a file of JSON lines: the first describes the run, each further one a committed shard. A line
is appended and synced after its shard is in place, with a checksum, so that one cut short by a
crash or a full disk is recognised.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from sgpipe.errors import StoreError, TakenOverError, UserError, existing_folder, os_error_reason
from sgpipe.files.image_roots import (
    ImagePlace,
    ImageRoot,
    ImageRoots,
    IndexFolder,
    image_root,
    located,
)
from sgpipe.files.locations import Location, absolute_location, location, sizes
from sgpipe.files.roots import FolderRoot
from sgpipe.files.stores import StorePath, UnconditionalError
from sgpipe.records import SCHEMA_VERSION
from sgpipe.storage.header import ClassLists, GpuUse, Identity, ParentRun, RunHeader
from sgpipe.storage.losses import Loss, losses_of
from sgpipe.storage.shard_file import check_version
from sgpipe.utils.atomic import atomic_write, fault_point

if TYPE_CHECKING:
    from obstore import UpdateVersion

MANIFEST = "manifest.jsonl"
DATA = "data"
WRITER = ".sgpipe/writer"
_ENDED = b""  # a claim whose run has ended
_COMPACTS = "compact"
_SILENCE = timedelta(hours=1)  # after which a writer that has not ended counts as killed
_CRC = b'{"crc32": "%08x", '  # of the rest of the line
_TRIES = 5
# Of an object that is there: absent, and one that no store gives.
_WRONG_VERSIONS: tuple[UpdateVersion | None, ...] = (
    None,
    {"e_tag": f'"{"0" * 32}"', "version": "0"},
)


@dataclass(frozen=True, slots=True)
class CompactedShard:
    """A shard whose rows are in a larger one now; the fields are those of `ShardEntry`."""

    start: int
    stop: int
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One committed shard: rows `start` to `stop` of its split's source, in `file` (relative to the
    run).

    seconds, gpus: what it took, as in `stages.runner.Usage`. compacted: the shards that it was made
    from by `sgpipe compact`, which it replaces.
    """

    split: str
    start: Annotated[int, Field(ge=0)]
    stop: int
    file: Annotated[str, Field(pattern=r"^data/[^/?]+\.parquet$")]
    sha256: str
    bytes: int
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gpus: dict[str, GpuUse] = field(default_factory=dict)
    compacted: list[CompactedShard] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.stop - self.start


class _ShardLine(BaseModel):
    shard: ShardEntry


def _entry(line: bytes) -> ShardEntry | None:
    """Return the entry that a line of the manifest describes; None if it describes none, or a byte
    of it changed.
    """
    try:
        entry = _ShardLine.model_validate_json(line).shard
    except ValidationError:
        return None
    return entry if _is_whole(line) and entry.start < entry.stop else None


class Manifest:
    """The manifest of one run, read from and appended to its folder.

    `damaged`: the numbers of lines that have changed. What follows the last newline is not one, but
    a torn write. `notes`: what users should know of it, one line each.
    """

    def __init__(self, root: Location, run: RunHeader, shards: list[ShardEntry], end: int) -> None:
        self.root = root
        self.run = run
        self.damaged: list[int] = []
        self.notes: list[str] = []
        self._end = end  # bytes of whole lines
        self._shards: dict[tuple[str, int], ShardEntry] = {}
        for shard in shards:
            self._add(shard)

    @property
    def shards(self) -> list[ShardEntry]:
        """The live shards, by split and position."""
        return sorted(self._shards.values(), key=lambda shard: (shard.split, shard.start))

    def _add(self, shard: ShardEntry) -> list[ShardEntry]:
        """Add a live shard; return those that it supersedes."""
        starts = [part.start for part in shard.compacted] or [shard.start]
        superseded: list[ShardEntry] = []
        for start in starts:
            earlier = self._shards.pop((shard.split, start), None)
            if earlier is not None:
                superseded.append(earlier)
        self._shards[shard.split, shard.start] = shard
        return superseded

    def location_of(self, file: str) -> Location:
        """Return where the file of a shard is."""
        return self.root / file

    @property
    def first_run(self) -> Location:
        """The run with the indexes of the images: of a dataset of runs the first one."""
        return self.root

    @property
    def folder(self) -> Path:
        """The folder of the run, which is not in a store."""
        assert isinstance(self.root, Path), self.root
        return self.root

    @property
    def image_roots(self) -> ImageRoots:
        """Where the images of each split were when the run was made; folders within the run move
        with it.
        """
        base = absolute_location(self.root)
        places = {
            split: located(place, base) for split, place in self.run.get("images", {}).items()
        }
        return ImageRoots(places, IndexFolder(self.root))

    def image_root(self, split: str, images: ImagePlace | None = None) -> ImageRoot:
        """As `run_images`; `images`: where they moved."""
        return run_images(self.root, split, images or self.image_roots.locations.get(split))

    @property
    def identity(self) -> Identity:
        """What decides the rows; {}: it is not stated."""
        return self.run.get("identity", {})

    @property
    def class_lists(self) -> ClassLists:
        """The closed lists of classes and predicates; empty ones where names are free."""
        return self.run.get("labels") or {"objects": [], "relations": []}

    @staticmethod
    def identities(run: Mapping[str, Any]) -> list[Identity]:
        """Return what decided the rows of a run, by its header, after that of the runs that it was
        made from.
        """
        return [*run.get("origin", []), run.get("identity", {})]

    @classmethod
    def create(cls, root: Path, run: RunHeader) -> Manifest:
        """Start a new run in `root`; `run` describes it."""
        header: RunHeader = {"schema_version": SCHEMA_VERSION, **run}
        return cls(root, header, [], replace_manifest(root, _line({"run": header})))

    @classmethod
    def load(cls, root: str | Location, *, salvage: bool = False) -> Manifest:
        """Read the manifest in `root`. Raises UserError: it is missing, damaged, or of another
        schema; StoreError.

        Args:
            salvage: only leave damaged lines out; see `damaged`.
        """
        root = location(root)
        data = read_manifest(root)
        if data is None:
            if isinstance(root, Path):
                existing_folder(root)
            raise UserError(f"{root} is not an sgpipe run: it has no {MANIFEST}")
        return cls.parse(data, root, root, salvage=salvage)

    @classmethod
    def parse(
        cls, data: bytes, root: Location, place: Location, *, salvage: bool = False
    ) -> Manifest:
        """As `load`, of what was read in `place`; `root`: the folder of the run, if it is in
        one.
        """
        path = f"{place}/{MANIFEST}"
        first, *lines = data.splitlines(keepends=True) or [b""]
        run = _header(first, path)
        shards: list[ShardEntry] = []
        damaged: list[int] = []
        for number, line in enumerate(lines, 2):
            shard = _entry(line)
            if shard is None:
                damaged.append(number)
            else:
                shards.append(shard)
        if damaged and not salvage:
            advice = "restore it from a copy"
            if isinstance(place, Path):
                advice += f", or drop that line: `sgpipe verify {place} --repair`"
            raise UserError(f"{path} is damaged (line {damaged[0]} has changed); {advice}")
        manifest = cls(root, run, shards, len(data))
        manifest.damaged = damaged
        return manifest

    def rewrite(self, dropped: Iterable[ShardEntry] = ()) -> None:
        """Replace the file with a manifest of the live shards without the dropped ones,
        atomically.
        """
        for shard in dropped:
            del self._shards[shard.split, shard.start]
        lines = [
            _line({"run": self.run}),
            *(_line({"shard": asdict(shard)}) for shard in self.shards),
        ]
        self._end = replace_manifest(self.folder, b"".join(lines))

    def commit(self, shard: ShardEntry) -> None:
        """Append a shard that is in place.

        Raises:
            OSError: the manifest is unchanged.
        """
        line = _line({"shard": asdict(shard)})
        fault_point("before manifest entry")
        with (self.folder / MANIFEST).open("r+b", buffering=0) as file:
            append_line(file.fileno(), line, self._end)
        fault_point("after manifest entry")
        self._end += len(line)
        for superseded in self._add(shard):
            if superseded.file != shard.file:
                # in a store `sweep` deletes it, as copies may still list it
                (self.folder / superseded.file).unlink(missing_ok=True)
                fault_point("between deletions")

    def lost(self, storage: Location) -> list[ShardEntry]:
        """Return the shards whose file is missing or of another size."""
        present = sizes(storage / DATA)
        return [
            shard
            for shard in self.shards
            if present.get(shard.file.removeprefix(f"{DATA}/")) != shard.bytes
        ]

    def missing(self, split: str, rows: range) -> list[tuple[int, int]]:
        """Return the ranges of a split's rows that no shard covers."""
        gaps: list[tuple[int, int]] = []
        covered = rows.start
        for shard in self.shards:
            if shard.split == split:
                gaps.append((covered, min(shard.start, rows.stop)))
                covered = max(covered, shard.stop)
        gaps.append((covered, rows.stop))
        return [(start, stop) for start, stop in gaps if start < stop]


def _header(line: bytes, path: str) -> RunHeader:
    """Return what the first line of a manifest states.

    Raises:
        UserError: it has changed, or is of another schema.
    """
    run: RunHeader | None = json.loads(line).get("run") if _is_whole(line) else None
    if run is None:
        raise UserError(f"{path} is damaged (its first line has changed); restore it from a copy")
    check_version(str(run.get("schema_version")), path)
    return run


def _line(entry: Mapping[str, object]) -> bytes:
    """Return one line, which starts with the checksum of the rest."""
    rest = json.dumps(entry)[1:].encode() + b"\n"
    return _CRC % zlib.crc32(rest) + rest


def _is_whole(line: bytes) -> bool:
    size = len(_CRC % 0)
    return line[:size] == _CRC % zlib.crc32(line[size:])


def run_images(run: str | Location, split: str, images: ImagePlace | None) -> ImageRoot:
    """Return the images of a split of a run.

    Raises:
        UserError: they are unknown or missing.
    """
    if images is None:
        raise UserError(f"{run} does not say where the images of {split} are: pass --images")
    root = image_root(images, IndexFolder(location(run)))
    if isinstance(root, FolderRoot) and not root.folder.is_dir():
        raise UserError(
            f"the image folder {root.folder} of {run} is missing; if the images moved, pass"
            " --images"
        )
    return root


def replace_manifest(root: Path, content: bytes) -> int:
    """Write a whole manifest, synced; returns its length."""
    with atomic_write(root / MANIFEST) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(root)
    return len(content)


def append_line(descriptor: int, line: bytes, end: int) -> None:
    """Write a line at the `end` of a file and sync it.

    Raises:
        OSError: nothing of it is left.
    """
    try:
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Summary:
    """Counts over all committed shards of a run or import; `planned`: how many images a complete
    one has.

    `parent`: the run that some columns come from. `losses`: what it lacks of what its source had.
    """

    root: Location
    planned: int
    counts: Counter[str]
    seconds: Counter[str]
    problems: Counter[str]
    shards: int
    parent: ParentRun | None = None
    losses: Sequence[Loss] = ()

    @property
    def complete(self) -> bool:
        return self.counts["images"] >= self.planned  # more after a smaller --limit

    def as_json(self) -> dict[str, object]:
        """Return plain values for JSON."""
        values: dict[str, object] = {
            "root": str(self.root),
            "complete": self.complete,
            "planned": self.planned,
            "shards": self.shards,
            "counts": dict(self.counts),
            "problems": dict(self.problems),
            "seconds": dict(self.seconds),
        }
        if self.parent:
            values["parent"] = self.parent
        return values


def add_up(manifest: Manifest, planned: int, problems: Mapping[str, int]) -> Summary:
    counts = Counter[str]()
    seconds = Counter[str]()
    for shard in manifest.shards:
        counts.update(shard.counts)
        seconds.update(shard.seconds)
    return Summary(
        manifest.root,
        planned,
        counts,
        seconds,
        Counter(problems),
        len(manifest.shards),
        manifest.run.get("parent"),
        losses_of(manifest.run, counts),
    )


def whole_lines(data: bytes) -> bytes:
    """Return the content of a manifest without a last line that was cut short."""
    return data[: data.rfind(b"\n") + 1]


def read_manifest(root: Location) -> bytes | None:
    """Return the whole lines of a run's manifest; None: it does not exist. Raises UserError;
    StoreError.
    """
    file = root / MANIFEST
    content = None
    try:
        if isinstance(file, StorePath):
            content = file.read()
        elif file.exists():
            content = file.read_bytes()
    except StoreError:
        raise
    except OSError as error:
        reason = os_error_reason(error)
        raise UserError(
            f"{file} cannot be read ({reason}): check its permissions, or copy it back"
        ) from None
    return None if content is None else whole_lines(content)


class WriterClaim:
    """Which run writes into a store: the one that claimed it last. An earlier one ends at its next
    `check` or `write`.

    A claim needs no renewal, so a run that was killed never keeps the next one waiting. One that
    ends releases its claim; only `sgpipe compact` waits for that.

    Attributes:
        is_made: whether this run has claimed the store.
        is_conditional: whether the store refuses to replace an object that has changed, known once
            the claim is made. Where it does not, a write that is on its way while another run
            claims the store still lands there.
    """

    def __init__(self, store: StorePath, *, compacts: bool = False) -> None:
        self._store = store
        self._file = store / WRITER
        command = _COMPACTS if compacts else "write"
        self._content = f"{command} {uuid.uuid4().hex}".encode()
        self.is_conditional = True
        self.is_made = False

    def make(self) -> None:
        """Claim the store.

        Raises:
            UserError: another run does so at the same moment.
        """
        try:
            self._file.put_if(self._content, self._file.version())
        except UnconditionalError:
            self._file.put(self._content)
        # also right if only the answer to the request was lost
        if self._file.read() != self._content:
            raise UserError(
                f"another run has just started writing into {self._store.uri}; wait for it to"
                " finish"
            )
        self.is_made = True
        self.is_conditional = self._refuses_changed()

    def release(self) -> None:
        """End a claim that was made, unless another run has claimed the store since.

        Raises:
            StoreError: the store cannot be reached.
        """
        if not self.is_made:
            return
        version = self._file.version()
        if self._file.read() != self._content:
            return
        if self.is_conditional:
            self._file.put_if(_ENDED, version)
        else:
            self._file.put(_ENDED)

    def refuse_live_writer(self) -> None:
        """Check that no other run writes into the store. A compaction may be taken over, as it is
        resumed.

        A run that was killed does not release its claim: it counts as live for an hour after it
        claimed the store or wrote its manifest.

        Raises:
            UserError: another run writes into the store.
            StoreError: the store cannot be reached.
        """
        writer = self._file.read() or _ENDED
        if writer == _ENDED or writer.startswith(_COMPACTS.encode()):
            return
        infos = [self._file.head(), (self._store / MANIFEST).head()]
        times = [info.modified for info in infos if info is not None and info.modified is not None]
        last = max(times, default=datetime.now(UTC)).astimezone(UTC)
        if datetime.now(UTC) - last > _SILENCE:
            return
        raise UserError(
            f"another run is writing into {self._store.uri} (since {last:%H:%M} UTC or before):"
            " compact it once that has ended, or if it was killed, after"
            f" {last + _SILENCE:%H:%M} UTC"
        )

    def _refuses_changed(self) -> bool:
        """Return whether the store refuses to write the claim, which is there, as if it were absent
        or another; if it does not, the claim stays as it is.
        """
        try:
            return not any(self._file.put_if(self._content, version) for version in _WRONG_VERSIONS)
        except UnconditionalError:
            return False

    @property
    def note(self) -> str | None:
        """What a user has to know of the store; None: nothing."""
        if self.is_conditional:
            return None
        return (
            f"{self._store.uri} ignores the conditions of writes (If-None-Match, If-Match), so let"
            " no two runs write there at once: what one is sending when the other starts would"
            " replace that one's shards"
        )

    def check(self) -> None:
        """Check that this run still writes into the store.

        Raises:
            TakenOverError: another run has claimed the store.
        """
        if self._file.read() != self._content:
            raise TakenOverError(
                f"{self._store.uri}: another run took over; what this one committed there is kept"
            )

    def write(self, name: str, content: bytes) -> None:
        """Write an object of the store, unless another run claims the store before it is in place.

        The version that is replaced was there before the claim is checked: what a later run
        writes is of another one.

        Raises:
            TakenOverError: another run has claimed the store.
            StoreError: the object changes all the time, or the store cannot be reached.
        """
        file = self._store / name
        if not self.is_conditional:
            self.check()
            fault_point("before put")
            file.put(content)
            return
        for _ in range(_TRIES):
            version = file.version()
            self.check()
            fault_point("before put")
            if file.put_if(content, version) or file.read() == content:
                return
        raise StoreError(f"{self._store.uri}: {name} changes too often to be written; try again")
