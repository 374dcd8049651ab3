"""The folder of a run: its layout, lock and identity, how it is read, and where commands may write
their results.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import yaml

from sgpipe.errors import StoreError, UserError, add_filename, os_error_reason
from sgpipe.files.locations import Location, absolute_location, below, location, sizes
from sgpipe.files.model_cache import cache_folder
from sgpipe.files.roots import is_image
from sgpipe.files.stores import StorePath
from sgpipe.records import SCHEMA
from sgpipe.storage.header import RunHeader
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry, WriterClaim
from sgpipe.storage.shard_file import ShardFile
from sgpipe.storage.shards import DATA, open_shard, write_copy
from sgpipe.utils.atomic import atomic_write, is_locked, only_process, write_text
from sgpipe.utils.config_file import dump_yaml
from sgpipe.utils.console import Progress, count
from sgpipe.utils.hashing import differences, fingerprint

if TYPE_CHECKING:
    from sgpipe.recipe import Recipe

PRIVATE = ".sgpipe"
_GROUND_TRUTH = "ground_truth.json"
_SHARD = re.compile(r"\w+-\d{9}-\d{9}(-r\d+)?\.parquet")
RECIPE = "recipe.yaml"
README = "README.md"
REQUESTS = "requests.sqlite"  # the answers of served models
ANSWERS = f"{PRIVATE}/answers"  # the same in a store
# Another command may be writing a file of its own next to these, such as a report: its temporary
# files are left alone.
_ROOT_FILES = (MANIFEST, RECIPE, README)

_OF_RUN = {MANIFEST, RECIPE, README, JUDGEMENTS, DATA, PRIVATE}
_OF_MODEL = {
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
}
_OF_TRAINING = {RECIPE, "run.json", "metrics.jsonl", "tensorboard"}
_OWNED = {  # what a folder that contains the file or folder has of its own
    MANIFEST: ("run", _OF_RUN),
    PRIVATE: ("run", _OF_RUN),
    "run.json": ("training", _OF_TRAINING),
    "config.json": ("model", _OF_MODEL),
}
_KINDS = {  # what an identity with this key is of
    "import": "an import",
    "scored": "a scored copy of a run",
    "corrected": "a corrected copy of a run",
    "merged": "a merged run",
}


@dataclass(frozen=True)
class GroundTruth:
    """Folders of shards with the relations that the images of a run are known to show.

    relations: all of them; a predicted relation is correct if it is one of these. required: those
    that recall counts (None: all). image_data: Visual Genome's image_data.json, if the ground truth
    is Visual Genome's and the run COCO's.
    """

    relations: Location
    required: Location | None = None
    image_data: Location | None = None


class RunFolder:
    """Layout of a run: `data/*.parquet`, `manifest.jsonl`, `recipe.yaml`, `README.md`, and
    `.sgpipe/`.
    """

    def __init__(self, root: Path, store: StorePath | None = None) -> None:
        """`store`: where the shards are instead, with copies of the files that are needed to resume
        the run.
        """
        self.root = root
        self.store = store
        self.location: Location = store or root  # where the shards are, for messages
        self.storage: Location = store or root.absolute()
        self.claim = WriterClaim(store) if store else None
        self.private = root / PRIVATE
        self._lock = self.private / "lock"

    def index(self, split: str) -> Path:
        return self.root / self.index_name(split)

    @staticmethod
    def index_name(split: str) -> str:
        """Return the name of the source index of a split within the run."""
        return f"{PRIVATE}/index-{split}.arrow"

    def set_ground_truth(self, ground_truth: GroundTruth | None) -> None:
        """Keep where the ground truth is, or that there is none."""
        if ground_truth is None:
            (self.private / _GROUND_TRUTH).unlink(missing_ok=True)
            return
        private = f"{self.private.absolute()}{os.sep}"  # folders of the run move with it
        places: dict[str, str] = {}
        for role, place in vars(ground_truth).items():
            if place is not None:
                places[role] = str(absolute_location(place)).removeprefix(private)
        write_text(self.private / _GROUND_TRUTH, json.dumps(places))

    @property
    def is_locked(self) -> bool:
        """Whether another process is writing into the folder."""
        return is_locked(self._lock)

    def check_root(self) -> None:
        """Raise UserError if the folder is a file or a URI, or contains something else."""
        if str(self.root).startswith(("s3:/", "gs:/", "abfs:/", "abfss:/")):
            raise UserError(
                f"--out {self.root} is not a folder; name one, and the store with --store"
                " s3://bucket/name"
            )
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise UserError(f"--out {self.root} is a file, not a folder")
        is_run = self.private.is_dir() or (self.root / MANIFEST).is_file()
        if not is_run and any(self.root.iterdir()):
            raise UserError(
                f"--out {self.root} is not empty and is not an sgpipe run; choose an empty or new"
                " folder"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder if needed, which a refused command removes again, and keep every other
        run out of it. At the end a claim of the store is released.

        Raises:
            UserError: as `check_root`; or another run is writing into it.
        """
        self.check_root()
        is_new = not self.root.exists() and self.store is None
        with add_filename(self.root):
            # first: by it the next run knows the folder
            self.private.mkdir(parents=True, exist_ok=True)
            (self.root / DATA).mkdir(exist_ok=True)
            with only_process(self._lock, self.root):
                try:
                    yield
                except UserError:
                    if is_new and self._is_unused:
                        shutil.rmtree(self.root, ignore_errors=True)
                    raise
                finally:
                    if self.claim is not None:
                        with suppress(StoreError):
                            self.claim.release()

    @property
    def _is_unused(self) -> bool:
        """Whether there is neither a shard nor an answer of a served model."""
        return not any((self.root / DATA).iterdir()) and not (self.private / REQUESTS).exists()

    def open(self, run: RunHeader) -> Manifest:
        """Return the manifest, a new one where there are no shards yet; `run`: what it says of the
        run.

        Raises:
            UserError: there are shards but no manifest, or of another `identity`, whose differences
                are listed.
        """
        run = {**run, "fingerprint": fingerprint(run["identity"])}
        if not (self.root / MANIFEST).exists():
            if self._shards():
                raise UserError(
                    f"{self.location} contains shards but no {MANIFEST}; restore it, or choose"
                    " another"
                )
            return Manifest.create(self.root, run)
        manifest = Manifest.load(self.root)
        is_same = manifest.run.get("fingerprint") == run["fingerprint"]
        if is_same and manifest.run.get("store") == run.get("store"):
            return manifest
        if not manifest.shards:
            return Manifest.create(self.root, run)
        raise settings_changed(self.location, manifest.identity, run["identity"])

    def describe(self, recipe: Recipe, manifest: Manifest) -> None:
        from sgpipe.recipe import UNSCORED

        write_text(self.root / RECIPE, dump_yaml(recipe.model_dump(mode="json")))
        title = f"{recipe.name}: relations generated by sgpipe"
        origin = "`recipe.yaml` says how the rows were made."
        if not recipe.tag.scores:
            origin += (
                f" No model chose the relations:\n{UNSCORED[recipe.tag.method]}, with confidence 1."
            )
        self.write_readme(title, origin, manifest)

    def write_readme(self, title: str, origin: str, manifest: Manifest) -> None:
        """Write the README, which tells people and dataset loaders what is there; `origin`: how it
        was made.
        """
        splits = sorted({shard.split for shard in manifest.shards})
        configs = [{"split": split, "path": f"{DATA}/{split}-[0-9]*.parquet"} for split in splits]
        header = yaml.safe_dump(
            {"configs": [{"config_name": "default", "data_files": configs}]}, sort_keys=False
        )
        write_text(
            self.root / README,
            f"---\n{header}---\n\n# {title}\n\nOne row per image. {origin} `manifest.jsonl` lists"
            " the shards in\n`data/`; a run in progress may have others. Statistics: `sgpipe"
            " stats` on this folder.\n",
        )

    def unlisted(self, manifest: Manifest) -> list[str]:
        """Shards that the manifest does not list, such as those of a killed run."""
        return sorted(self._shards() - {shard.file for shard in manifest.shards})

    def _shards(self) -> set[str]:
        return {f"{DATA}/{name}" for name in sizes(self.storage / DATA) if _SHARD.fullmatch(name)}

    def sweep(self, manifest: Manifest) -> None:
        """Delete what a killed run left behind: shards that the manifest does not list, and
        temporary files.
        """
        for file in self.unlisted(manifest):
            if self.claim:
                self.claim.check()
            (self.storage / file).unlink(missing_ok=True)
        temporary = [*(self.root / DATA).glob(".*.tmp"), *self.private.glob("*.tmp")]
        for name in _ROOT_FILES:
            temporary += self.root.glob(f".{name}.*.tmp")
        for path in temporary:
            path.unlink(missing_ok=True)


def copy_run(
    source: Manifest,
    out: Path,
    header: RunHeader,
    change: Callable[[ShardEntry, bool], pa.Table],
    doing: str,
    readme: tuple[str, str],
    progress: Progress,
) -> Manifest:
    """Copy a run to `out` with other contents; a copy that stopped is resumed.

    `change` returns the new content of a shard; it is told if `out` has the shard already.

    Args:
        header: what differs in that of the manifest.
        doing: such as "scoring".
        readme: see `write_readme`.

    Raises:
        UserError: as `RunFolder.open`.
    """
    run: RunHeader = {**source.run, **header}
    run.pop("store", None)
    run["origin"] = Manifest.identities(source.run)
    run["finished"] = False
    folder = RunFolder(out)
    with folder.lock():
        manifest = folder.open(run)
        current = {shard.file: shard for shard in source.shards}
        outdated = [
            shard for shard in manifest.shards if not _is_copy(shard, current.get(shard.file))
        ]
        if outdated:
            manifest.rewrite(outdated)
        done = {shard.file for shard in manifest.shards}
        folder.sweep(manifest)
        with progress.images(None, doing) as advance:
            for shard in source.shards:
                table = change(shard, shard.file in done)
                if shard.file not in done:
                    manifest.commit(write_copy(out, replace(shard, compacted=[]), table))
                advance(shard.rows, shard.counts)
        if not manifest.run["finished"]:
            manifest.run["finished"] = True
            manifest.rewrite()
        folder.write_readme(*readme, manifest)
    if done.issuperset(current):
        progress.say(f"nothing left to do: {out} has all {count(len(done), 'shard')}")
    return manifest


def _is_copy(copy: ShardEntry, source: ShardEntry | None) -> bool:
    """Return whether a shard is the copy of one, which has not been processed again since."""
    if source is None:
        return False
    took = (source.stop, source.seconds, source.gpus)
    return (copy.stop, copy.seconds, copy.gpus) == took


def ground_truth_of(root: Location) -> GroundTruth | None:
    """Return the ground truth of a run, whose own folders move with it; None: it has none, or is in
    a store.
    """
    if not isinstance(root, Path):
        return None
    file = root / PRIVATE / _GROUND_TRUTH
    if not file.is_file():
        return None
    named = json.loads(file.read_text(encoding="utf-8"))
    folder = file.parent.absolute()
    return GroundTruth(**{role: below(folder, path) for role, path in named.items()})


def settings_changed(
    place: Location, before: Mapping[str, object], now: Mapping[str, object]
) -> UserError:
    """Return the error for a place that was made with other settings."""
    kind_before = kind_of(before)
    kind = kind_of(now)
    option = "--store" if isinstance(place, StorePath) else "--out"
    if kind_before != kind:
        return UserError(f"{place} contains {kind_before}, not {kind}; choose another {option}")
    lines = "".join(f"\n  {line}" for line in differences(before, now))
    if before.get("source") != now.get("source"):
        lines += "\nTo add images, label them in a run of their own, and `sgpipe merge` both."
    return UserError(
        f"{place} was made with other settings; choose another {option}, or revert these"
        f" settings:{lines}"
    )


def kind_of(identity: Mapping[str, object]) -> str:
    """Return what an identity is of."""
    return next((kind for key, kind in _KINDS.items() if key in identity), "a run")


class RunFiles:
    """A run that is read: its `place`, which messages call `root`; its `folder`, if it is one; its
    shards' `storage`.

    `problems`: damaged lines of the manifest.
    """

    def __init__(self, root: str | Location) -> None:
        """StoreError: the store cannot be reached.

        Raises:
            UserError: there is no run, or its manifest is damaged.
        """
        self.place = location(root)
        self.root = str(self.place)
        self.folder = self.place if isinstance(self.place, Path) else None
        self.manifest = Manifest.load(self.place, salvage=True)
        advice = (
            f"`sgpipe verify {self.root} --repair`" if self.folder else "restore it from a copy"
        )
        self.problems = [
            f"{self.root}/{MANIFEST}: line {n} is damaged; {advice}" for n in self.manifest.damaged
        ]
        self.storage = absolute_location(self.place)
        store = self.manifest.run.get("store")
        if store and self.folder and not self._has_shards(self.folder):
            self.storage = StorePath(store)

    def _has_shards(self, folder: Path) -> bool:
        return all((folder / shard.file).is_file() for shard in self.manifest.shards)

    def states(self) -> dict[str, str]:
        """Return what changes with each shard's file; "missing": there is none. Raises
        StoreError.
        """
        states: dict[str, str] = {}
        stored: dict[str, int] = {}
        if isinstance(self.storage, StorePath):
            stored = sizes(self.storage / DATA)
        for shard in self.manifest.shards:
            state = str(stored.get(shard.file.removeprefix(f"{DATA}/"), "missing"))
            if isinstance(self.storage, Path):
                with suppress(OSError):
                    status = os.stat(f"{self.storage}/{shard.file}")
                    state = f"{status.st_size} {status.st_mtime_ns}"
            states[shard.file] = f"{shard.sha256} {state}"
        return states

    def location_of(self, file: str) -> Location:
        """Return where the file of a shard is."""
        return self.storage / file

    @property
    def is_being_written(self) -> bool:
        """Whether a process of this machine is writing into its folder."""
        return self.folder is not None and RunFolder(self.folder).is_locked

    @property
    def is_stored(self) -> bool:
        """Whether shards are in a store."""
        return isinstance(self.storage, StorePath)

    def open(self, file: str) -> AbstractContextManager[ShardFile]:
        """Open a shard; of one in a store only what is read is downloaded. Raises as
        `open_shard`.
        """
        return open_shard(self.location_of(file), SCHEMA.names)

    @property
    def judgements(self) -> Path:
        """The file of people's judgements: in the folder, or in the cache, as nothing is appended
        to an object.
        """
        return (self.folder or self.cache) / JUDGEMENTS

    @cached_property
    def cache(self) -> Path:
        """A folder to keep what was derived: RUN/.sgpipe/cache, or one in the user's cache for a
        run in a store or in a folder that cannot be written.

        Raises:
            UserError: it cannot be made.
        """
        if self.folder is not None:
            place = self.folder / PRIVATE / "cache"
            with suppress(OSError):
                place.mkdir(parents=True, exist_ok=True)
                has_options = "?" in str(place)  # where those of DuckDB begin
                if os.access(place, os.W_OK | os.X_OK) and not has_options:
                    return place
        name = self.root if self.folder is None else str(self.folder.absolute())
        place = cache_folder() / "runs" / hashlib.sha256(name.encode()).hexdigest()[:16]
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{place} cannot be made: {os_error_reason(error)}; set SGPIPE_CACHE to a folder"
            ) from None
        return place


def check_output(path: Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Return a path.

    Raises:
        UserError: it is an input, an image in one, or a run's or a model's; links are followed.
    """
    target = path.resolve()
    for place in map(Path, inputs):
        if _is_same_place(target, place.resolve()):
            raise UserError(f"{path} is read by this command: write to another place")
        if _is_image_in(target, place.resolve()):
            raise UserError(
                f"{path} is an image in {place}, which this command reads: write to another place"
            )
    for folder in target.parents:
        name = target.relative_to(folder).parts[0]
        for mark, (kind, names) in _OWNED.items():
            if name in names and (folder / mark).exists():
                raise UserError(f"{path} belongs to the {kind} {folder}: write to another place")
    return path


def _is_same_place(target: Path, source: Path) -> bool:
    if target == source:
        return True
    # os.path.exists: a value that is not a path, such as of --set, may be too long for one
    return target.exists() and os.path.exists(source) and target.samefile(source)


def _is_image_in(target: Path, source: Path) -> bool:
    """Return whether a file is an image below a folder that is no run, whose files are its own."""
    is_image_file = target.is_file() and is_image(target.name)
    is_inside = is_image_file and target.is_relative_to(source)
    return is_inside and not os.path.exists(source / MANIFEST)


@contextmanager
def write_result(path: Path) -> Iterator[Path]:
    """Yield a temporary file that then replaces `path`.

    Raises:
        UserError: it is a folder, or as `check_output`.
    """
    if check_output(path).is_dir():
        raise UserError(f"{path} is a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        yield temporary


def write_result_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8.

    Raises:
        UserError, OSError: as `write_result`.
    """
    with write_result(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
