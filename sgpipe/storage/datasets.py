"""Datasets of runs: several runs that commands read as one.

A dataset is named by a pattern of folders ("labels/part-*", also in a store) or by a YAML file that
lists runs (`runs: [coco, s3://bucket/labels/part-*]`). Nothing is copied: its manifest lists the
shards of all runs, in their order.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace, ImageRoot, ImageRoots, IndexFolder
from sgpipe.files.locations import Location, absolute_location, below, location, read_text
from sgpipe.files.stores import StorePath
from sgpipe.records import SCHEMA_VERSION
from sgpipe.storage.header import ClassLists, Identity, RunHeader
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry, run_images
from sgpipe.storage.run_folder import RunFiles
from sgpipe.utils.config_file import Config, explained, parse_yaml
from sgpipe.utils.console import listed
from sgpipe.utils.hashing import fingerprint

_SUFFIXES = (".yaml", ".yml")
_DIGITS = re.compile(r"(\d+)")


class DatasetFile(Config):
    """A file that lists the runs of a dataset."""

    runs: tuple[str, ...] = Field(
        min_length=1, description="folders, stores or patterns, relative to the file"
    )


def is_dataset(place: str | Location) -> bool:
    """Return whether a place names a dataset, which need not exist, and not a single run."""
    place = location(place)
    if isinstance(place, Path) and place.is_dir():
        return False
    return "*" in str(place) or place.name.endswith(_SUFFIXES)


def runs_of(place: str | Location) -> list[Location]:
    """Return the runs that a place names: those of a dataset in their order, or the only one.

    Raises:
        UserError: a pattern matches no run, or the file is damaged.
        StoreError: the store cannot be reached.
    """
    place = location(place)
    if not is_dataset(place):
        return [place]
    if "*" in str(place):
        return _matches(place)
    text = read_text(place, "the list of runs")
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{place} is not YAML: {error}") from None
    with explained(DatasetFile, f"{place}: "):
        dataset = DatasetFile.model_validate(values)
    base = place.parent
    runs: list[Location] = []
    for name in dataset.runs:
        run = below(base, name)
        runs += _matches(run) if "*" in name else [run]
    return runs


def load_manifest(place: str | Location) -> Manifest:
    """Return the manifest of a run or of a dataset. Raises as `Manifest.load`; UserError: as
    `runs_of`, or the runs of a dataset do not fit together.
    """
    if not is_dataset(place):
        return Manifest.load(place)
    files = DatasetFiles(place)
    if files.damage:
        raise UserError(files.damage[0])
    return files.manifest


def open_files(place: str | Location) -> RunFiles:
    """Return a run or a dataset that is read. Raises as `RunFiles` and `load_manifest`."""
    return DatasetFiles(place) if is_dataset(place) else RunFiles(place)


class DatasetManifest(Manifest):
    """The shards of several runs, by split and then in the order of the runs.

    `notes`: what users should know of the dataset, one line each.
    """

    def __init__(self, root: Location, members: Sequence[Member]) -> None:
        """Raise UserError: runs have the same images, or other closed lists of classes."""
        super().__init__(root, _header(members), _placed(members), 0)
        self.notes = [f"{root}: {line}" for line in _missing_parts(members)]
        self._members = {member.name: member for member in members}
        self._images = _images_of(members)
        self._indexes = IndexFolder(members[0].files.place)

    def location_of(self, file: str) -> Location:
        run, folder, name = file.rsplit("/", 2)
        return self._members[run].files.location_of(f"{folder}/{name}")

    @property
    def first_run(self) -> Location:
        return self._indexes.run or self.root

    @property
    def image_roots(self) -> ImageRoots:
        agreed = {split: places[0] for split, places in self._images.items() if len(places) == 1}
        return ImageRoots(agreed, self._indexes)

    def image_root(self, split: str, images: ImagePlace | None = None) -> ImageRoot:
        places = self._images.get(split, [])
        if images is None and len(places) > 1:
            raise UserError(
                f"the images of {split} are in {listed(places)}: unite the runs of {self.root}"
                " with `sgpipe merge`, or pass --images if they moved to one place"
            )
        return run_images(self.first_run, split, images or next(iter(places), None))


class DatasetFiles(RunFiles):
    """The files of the runs of a dataset.

    `problems`: also parts that are missing; `damage`: only damaged lines of manifests; `members`:
    the runs, in order.
    """

    def __init__(self, root: str | Location) -> None:
        """Raise as `load_manifest`."""
        self.place = location(root)
        self.root = str(self.place)
        self.folder = None
        members = _members(self.place)
        self.manifest = DatasetManifest(self.place, members)
        self.storage = absolute_location(self.place)
        self.damage = [problem for member in members for problem in member.files.problems]
        self.problems = [*self.damage, *self.manifest.notes]
        self.members = members

    @property
    def is_stored(self) -> bool:
        return any(member.files.is_stored for member in self.members)

    @property
    def is_being_written(self) -> bool:
        return any(member.files.is_being_written for member in self.members)

    def location_of(self, file: str) -> Location:
        return self.manifest.location_of(file)

    def states(self) -> dict[str, str]:
        states: dict[str, str] = {}
        for member in self.members:
            for file, state in member.files.states().items():
                states[f"{member.name}/{file}"] = state
        return states


@dataclass(frozen=True)
class Member:
    """A run of a dataset; `name`: what the files of the dataset call it."""

    name: str
    files: RunFiles

    @property
    def header(self) -> RunHeader:
        return self.files.manifest.run

    @property
    def source(self) -> str:
        """What tells runs of other images or settings apart: parts of one source have the same."""
        return str(self.header.get("fingerprint", self.name))


def _members(place: Location) -> list[Member]:
    """Return the runs of a dataset, each once.

    Raises:
        UserError: one is named twice, or is no run.
    """
    base = absolute_location(place.parent)
    members: dict[str, Member] = {}
    for run in runs_of(place):
        path = str(absolute_location(run))
        if path in members:
            raise UserError(f"{place} names {run} twice")
        name = path.removeprefix(f"{base}/")
        members[path] = Member(name, RunFiles(run))
    return list(members.values())


def _matches(pattern: Location) -> list[Location]:
    """Return the runs that a pattern matches, sorted by their names, numbers in them by value.

    Raises:
        UserError: there are none, or a pattern of a store is not in its last part.
    """
    runs: list[Location]
    if isinstance(pattern, Path):
        folders = [Path(name) for name in glob.glob(str(pattern.expanduser()))]
        runs = [folder for folder in folders if (folder / MANIFEST).is_file()]
    else:
        runs = _stored_matches(pattern)
    if not runs:
        raise UserError(f"{pattern} matches no run: none of the folders has a {MANIFEST}")
    return sorted(runs, key=lambda run: _by_number(str(run)))


def _stored_matches(pattern: StorePath) -> list[Location]:
    parent = pattern.parent
    if "*" in parent.uri:
        raise UserError(f"{pattern}: in a store, * may only be in the last part of a pattern")
    names = re.compile(".*".join(map(re.escape, pattern.name.split("*"))))
    folders = [folder for folder in parent.folders() if names.fullmatch(folder.name)]
    return [folder for folder in folders if (folder / MANIFEST).head() is not None]


def _by_number(text: str) -> list[tuple[int, str]]:
    """Return a key by which part-2 comes before part-10."""
    parts = _DIGITS.split(text)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _name_of_member(shard: ShardEntry) -> str:
    return shard.file.rsplit("/", 2)[0]


def _placed(members: Sequence[Member]) -> list[ShardEntry]:
    """Return all shards, by the rows of the dataset.

    Runs of one source keep the places that their images have in it, so that its parts are together
    what one run would be; other runs follow each other.

    Raises:
        UserError: two runs have the same rows of a source.
    """
    shards: list[ShardEntry] = []
    first_rows = Counter[str]()
    for source in dict.fromkeys(member.source for member in members):
        parts = [member for member in members if member.source == source]
        own_shards = _of_source(parts)
        _check_overlaps(own_shards)
        for shard in own_shards:
            first = first_rows[shard.split]
            shards.append(replace(shard, start=shard.start + first, stop=shard.stop + first))
        for shard in shards[-len(own_shards) :]:
            first_rows[shard.split] = max(first_rows[shard.split], shard.stop)
    return shards


def _of_source(members: Sequence[Member]) -> list[ShardEntry]:
    """Return the shards of runs of one source, by the names that the dataset has for them."""
    shards: list[ShardEntry] = []
    for member in members:
        for shard in member.files.manifest.shards:
            shards.append(replace(shard, file=f"{member.name}/{shard.file}", compacted=[]))
    return sorted(shards, key=lambda shard: (shard.split, shard.start))


def _check_overlaps(shards: Sequence[ShardEntry]) -> None:
    """Raise UserError if two shards of a source have the same rows."""
    for earlier, later in pairwise(shards):
        if earlier.split == later.split and later.start < earlier.stop:
            last = min(earlier.stop, later.stop)
            raise UserError(
                f"{_name_of_member(earlier)} and {_name_of_member(later)} both have images"
                f" {later.start:,} to {last:,} of {later.split}: leave one of these runs out, or"
                " unite them with `sgpipe merge`"
            )


def _header(members: Sequence[Member]) -> RunHeader:
    """Return what the manifest of a dataset states."""
    headers = [member.header for member in members]
    names = {str(header.get("name", "")) for header in headers}
    runs = [[member.source, member.header.get("part", "")] for member in members]
    is_one_source = len({member.source for member in members}) == 1
    return {
        "schema_version": SCHEMA_VERSION,
        "name": " + ".join(sorted(names)),
        "identity": headers[0].get("identity", {}) if is_one_source else {},
        "origin": headers[0].get("origin", []) if is_one_source else _identities(headers),
        "labels": _class_lists(members),
        "source_images": _source_images(members),
        "finished": all(header.get("finished", True) for header in headers),
        "fingerprint": fingerprint({"runs": runs}),
    }


def _identities(headers: Sequence[RunHeader]) -> list[Identity]:
    """Return what decided the rows of runs, each once."""
    identities: list[Identity] = []
    for header in headers:
        for identity in Manifest.identities(header):
            if identity not in identities:
                identities.append(identity)
    return identities


def _source_images(members: Sequence[Member]) -> int:
    """Return how many images the sources of all runs have, each source once."""
    images_of: dict[str, int] = {}
    for member in members:
        rows = sum(shard.rows for shard in member.files.manifest.shards)
        images_of[member.source] = member.header.get("source_images", rows)
    return sum(images_of.values())


def _class_lists(members: Sequence[Member]) -> ClassLists | None:
    """Return the closed lists of all runs, which must agree.

    Raises:
        UserError: they differ.
    """
    first = members[0]
    for member in members[1:]:
        if member.header.get("labels") != first.header.get("labels"):
            raise UserError(
                f"{member.files.root} and {first.files.root} have other lists of classes or"
                " predicates: unite them with `sgpipe merge`"
            )
    return first.header.get("labels")


def _images_of(members: Sequence[Member]) -> Mapping[str, list[str]]:
    """Return where the images of each split are: one place, unless the runs disagree."""
    places: dict[str, list[str]] = {}
    for member in members:
        for split, place in member.files.manifest.image_roots.locations.items():
            known = places.setdefault(split, [])
            if place not in known:
                known.append(place)
    return places


def _missing_parts(members: Sequence[Member]) -> list[str]:
    """Return a line for each source of which parts are not in the dataset."""
    numbers_of: dict[tuple[str, int], set[int]] = {}
    for member in members:
        number, slash, parts = member.header.get("part", "").partition("/")
        if slash:
            numbers_of.setdefault((member.source, int(parts)), set()).add(int(number))
    lines: list[str] = []
    for (_, all_parts), numbers in numbers_of.items():
        missing = sorted(set(range(1, all_parts + 1)) - numbers)
        if missing:
            names = listed([f"{number}/{all_parts}" for number in missing[:5]])
            more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
            lines.append(f"there is no run of part {names}{more}")
    return lines
