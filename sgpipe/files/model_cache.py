"""Models in object stores and on the hub: each machine fetches one once, into its cache.

The process that starts a run pins a model, so that every worker uses the same files: `s3://bucket/tagger` becomes
`s3://bucket/tagger#sha256:0123456789abcdef`, a run with it is that with a folder of these files; `anna/tagger` becomes
`anna/tagger@COMMIT`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock

from sgpipe.errors import EngineError, StoreError, UserError, existing_model
from sgpipe.files.hub import HubModel
from sgpipe.files.object_store import ObjectInfo, StorePath, is_uri
from sgpipe.utils import console
from sgpipe.utils.atomic import write_text
from sgpipe.utils.hashing import PINNED, fingerprint, model_sha256

_PLACES = ("", "best/", "last/")  # of a model: a folder of its own, or the checkpoints of a training
_CONFIG, _OPEN_CLIP = "config.json", "open_clip_config.json"


def cache_folder() -> Path:
    """Where sgpipe keeps files of this machine that no run keeps: SGPIPE_CACHE, by default ~/.cache/sgpipe."""
    if own := os.environ.get("SGPIPE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sgpipe")


def pin_model(name: str, before: str = "") -> str:
    """Return a model of a store with the hash of the files that it has now, one of the hub with its commit.

    Any other name is unchanged, and one of the hub if its commit cannot be told.

    Args:
        before: what a run that is resumed says of its models; a commit in it stays.

    Raises:
        UserError: there is no such model or no permission, or the URI holds keys.
        EngineError: the store cannot be reached.
    """
    if hub := HubModel.parse(name):
        if known := re.search(rf"{re.escape(name)}@[0-9a-f]{{40}}", before):
            return known[0]
        with suppress(UserError, StoreError):
            return str(HubModel(hub.name, hub.config().name))
    if not is_uri(name) or PINNED in name:
        return name
    return f"{name}{PINNED}{_Cached(name).newest()}"


def local_model(name: str, *, whole: bool = True) -> str:
    """Return the folder of a model of a store or the hub, fetched if it is not there; any other name unchanged.

    Args:
        whole: False: config.json is enough.

    Raises as `pin_model`; also UserError: it can only be a path, and is missing; the hub has no such model, or not for
    this user; or the files in the store have another hash than the one in the name.
    """
    if hub := HubModel.parse(name):
        try:
            with _as_engine_errors():
                return str(hub.folder() if whole else hub.config())
        except UserError as error:
            raise UserError(f"no such folder: {name}, and {error}") from None
    if not is_uri(name):
        return existing_model(name)
    uri, _, sha256 = name.partition(PINNED)
    cached = _Cached(uri)
    return str(cached.folder(sha256 or cached.newest()))


class _Cached:
    """The versions of one model that this machine has, each in a folder that is named by its hash.

    Beside a folder `HASH` are `HASH.json`, its files with sizes and times, and `listing-….json`: which hash the files
    have that the store lists so.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._reader = uri, StorePath(uri)
        self._root = cache_folder() / "models" / fingerprint({"uri": uri})

    def newest(self) -> str:
        """The hash of the files that the store has now, which are then here."""
        with _as_engine_errors():
            files = self._listed()
            listing = self._root / f"listing-{_listing(files)}.json"
            with self._lock():
                known = _read_json(listing)
                if isinstance(known, str) and self._is_here(known):
                    return known
                sha256 = self._fetch(files)
                write_text(listing, json.dumps(sha256))
                return sha256

    def folder(self, sha256: str) -> Path:
        """The folder of the files with this hash."""
        if not self._is_here(sha256):
            with self._lock(), _as_engine_errors():
                if not self._is_here(sha256) and self._fetch(self._listed()) != sha256:
                    raise UserError(f"the model {self._uri} is not the one that the run started with: it has changed")
        return self._root / sha256

    def _is_here(self, sha256: str) -> bool:
        """Whether the files are here, unchanged since their hash was computed."""
        files = _read_json(self._root / f"{sha256}.json")
        return files is not None and files == _stats(self._root / sha256)

    def _listed(self) -> dict[str, ObjectInfo]:
        """The files of the model, by their names in its folder. Raises UserError: there is none."""
        self._reader.check()
        infos = {info.name: info for info in self._reader.list()}
        place = next((place for place in _PLACES if f"{place}{_CONFIG}" in infos), None)
        if place is None and _OPEN_CLIP in infos:
            place = ""
        if place is None:
            raise UserError(f"{self._uri} is no model: it has no {_CONFIG}")
        files = {name.removeprefix(place): info for name, info in infos.items() if name.startswith(place)}
        hidden = [name for name in files if any(re.match(r"\.[^.]", part) for part in name.split("/"))]
        return {name: files[name] for name in sorted(files.keys() - {*hidden})}

    def _fetch(self, files: Mapping[str, ObjectInfo]) -> str:
        """Download the files into their folder; returns their hash. Files of an interrupted download are kept."""
        size = sum(info.size for info in files.values())
        what = f"{console.count(len(files), 'file')}, {size / 1e6:,.1f} MB"
        console.progress().print(f"fetching the model {self._uri} ({what})", soft_wrap=True)
        partial, words = self._root / f"partial-{_listing(files)}", console.Reminder()
        for name, info in files.items():
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                raise UserError(f"the model has a file outside its folder: {name!r}")
            file = partial / name
            if file.is_file() and file.stat().st_size == info.size:
                continue

            def advance(start: int, info: ObjectInfo = info) -> None:
                words.say(f"{self._uri}: {start / 1e6:,.0f} of {info.size / 1e6:,.0f} MB of {info.name}")

            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.tmp")
            self._reader.get_file(info.name, temporary, info, advance)
            os.replace(temporary, file)
        sha256 = str(model_sha256(str(partial))).removeprefix("sha256:")
        folder = self._root / sha256
        if not self._is_here(sha256):  # another process may be reading the same files, uploaded earlier
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
            write_text(self._root / f"{sha256}.json", json.dumps(_stats(folder)))
        for left in self._root.glob("partial-*"):  # of files that are not in the store any more
            shutil.rmtree(left, ignore_errors=True)
        return sha256

    def _lock(self) -> FileLock:
        """Return the lock that lets one process of this machine fetch the model."""
        self._root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / ".lock", thread_local=False)


@contextmanager
def _as_engine_errors() -> Iterator[None]:
    try:
        yield
    except (StoreError, FileNotFoundError) as error:
        raise EngineError(str(error)) from None


def _listing(files: Mapping[str, ObjectInfo]) -> str:
    """A hash of what the store says of files."""
    return fingerprint({name: [info.size, info.version, info.modified.isoformat()] for name, info in files.items()})


def _stats(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of each file of a folder, by its name."""
    files = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): [stat.st_size, stat.st_mtime_ns] for path, stat in files}


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
