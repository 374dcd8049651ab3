"""The folder of a run: who may write into it, and what lies where."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgpipe.errors import UserError, making_folder, naming
from sgpipe.recipe import Recipe
from sgpipe.storage.lock import StoreLock
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.shards import DATA
from sgpipe.storage.storage import FolderShelf, Shelf, Store, StoreShelf
from sgpipe.utils.locking import is_locked, only_process

_PRIVATE = ".sgpipe"
_SETTINGS = "drawn.json"
_SHARD = re.compile(r"\w+-\d{9}-\d{9}(-r\d+)?\.parquet")
_URI = re.compile(r"\w{2,}:/")  # as `Path` leaves it
_TEMPORARY = re.compile(r"\..*\.tmp")


@dataclass(frozen=True)
class Drawing:
    """Images that were drawn for a run, and shards of what is true of them, all in one folder."""

    place: Path

    @property
    def world(self) -> Path:
        """What `sgpipe miniworld` writes."""
        return self.place / "world"

    @property
    def true(self) -> Path:
        """Shards of all that is true."""
        return self.place / "true"

    @property
    def composed(self) -> Path:
        """Shards of what the images were made to show, from which the rest follows."""
        return self.place / "composed"

    @property
    def settings(self) -> dict[str, Any] | None:
        """Which images these are; None as long as they are not all there with what is true of them."""
        path = self.place / _SETTINGS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, settings: Mapping[str, Any]) -> None:
        _write(self.place / _SETTINGS, json.dumps(settings))


class RunFolder:
    """Layout of a run: `data/*.parquet`, `manifest.jsonl`, `recipe.yaml`, `README.md`, and `.sgpipe/`."""

    def __init__(self, root: Path, store: Store | None = None) -> None:
        """
        Args:
            store: where the shards lie instead, with a copy of all else that is needed to go on from them.
        """
        self.root = root
        self.store = store
        self.shelf: Shelf = StoreShelf(store) if store else FolderShelf(root.absolute())
        self._store_lock = StoreLock(store) if store else None
        self.private = root / _PRIVATE
        self._lock = self.private / "lock"

    def index(self, split: str) -> Path:
        """The source index of a split."""
        return self.root / self.index_name(split)

    def index_name(self, split: str) -> str:
        """The same within the run."""
        return f"{_PRIVATE}/index-{split}.arrow"

    @property
    def place(self) -> str:
        """Where the shards lie, to be shown to people."""
        return self.store.place if self.store else str(self.root)

    @property
    def drawing(self) -> Drawing:
        """The images of the run, if they are drawn for it."""
        return Drawing(self.private / "drawn")

    @property
    def truth(self) -> Drawing | None:
        """What is true of the run's images, where that is known."""
        return self.drawing if self.drawing.settings else None

    @property
    def at_work(self) -> bool:
        """Whether a run is writing into the folder."""
        return is_locked(self._lock)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep every other run out of it.

        Raises:
            UserError: it is a file, holds something else, cannot be written, or another run is at work in it.
        """
        with self._store_lock.held() if self._store_lock else nullcontext():
            self._make()
            with naming(self.root), only_process(self._lock, self.root):
                yield

    def check_lock(self) -> None:
        """Raises StoreError: another run took over the store. In a folder that cannot be."""
        if self._store_lock:
            self._store_lock.check()

    def _make(self) -> None:
        if _URI.match(str(self.root)):
            raise UserError(f"--out {self.root} is no folder; name one, and the store by --store s3://bucket/name")
        ours = self.private.is_dir() or (self.root / MANIFEST).is_file()
        if self.root.is_dir() and not ours and any(self.root.iterdir()):
            raise UserError(f"--out {self.root} holds something that is not an sgpipe run; name an empty or new folder")
        with making_folder(self.root):
            self.private.mkdir(parents=True, exist_ok=True)
            (self.root / DATA).mkdir(exist_ok=True)
            self._lock.touch()

    def describe(self, recipe: Recipe, manifest: Manifest) -> None:
        """Write the resolved recipe and the README."""
        dumped = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        _write(self.root / "recipe.yaml", dumped)
        title = f"{recipe.name}: relations generated by sgpipe"
        self.write_readme(title, "`recipe.yaml` says how the rows were made.", manifest)

    def write_readme(self, title: str, origin: str, manifest: Manifest) -> None:
        """Write the README, which tells people and dataset loaders what is here; `origin`: how it was made."""
        splits = sorted({shard.split for shard in manifest.shards})
        configs = [{"split": split, "path": f"{DATA}/{split}-[0-9]*.parquet"} for split in splits]
        header = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": configs}]}, sort_keys=False)
        _write(
            self.root / "README.md",
            f"---\n{header}---\n\n# {title}\n\n"
            f"One row per image. {origin} `manifest.jsonl` lists the shards in\n"
            "`data/`; others are a run's that is at work. Statistics: `sgpipe stats` on this folder.\n",
        )

    def holds_shards(self) -> bool:
        """Whether there is any shard, listed or not."""
        return bool(self._shards())

    def unlisted(self, manifest: Manifest) -> list[str]:
        """Shards that the manifest does not list, such as a killed run leaves."""
        listed = {shard.file for shard in manifest.shards}
        return sorted(self._shards().keys() - listed)

    def _shards(self) -> dict[str, int]:
        """Every shard that is there, listed or not, and its bytes."""
        there = self.shelf.sizes(DATA)
        return {f"{DATA}/{name}": size for name, size in there.items() if _SHARD.fullmatch(name)}

    def set_aside(self, path: Path) -> None:
        """Move a file or folder of the run to where no run looks at it."""
        place = self.private / "dropped"
        place.mkdir(exist_ok=True)
        taken = sum(1 for _ in place.iterdir())
        os.replace(path, place / f"{taken:04d}-{path.name}")

    def sweep(self, manifest: Manifest) -> None:
        """Delete what a killed run left behind: shards the manifest does not list, and temporary files."""
        self.check_lock()
        for file in self.unlisted(manifest):
            self.shelf.delete(file)
        temporary = [path for path in (self.root / DATA).iterdir() if _TEMPORARY.fullmatch(path.name)]
        for path in [*temporary, *self.private.glob("*.tmp")]:
            path.unlink()

    def lost(self, manifest: Manifest) -> list[ShardEntry]:
        """Listed shards whose file is gone or of another size."""
        there = self._shards()
        return [shard for shard in manifest.shards if there.get(shard.file) != shard.bytes]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
