"""Models in object stores and on the hub: each machine fetches one once, into its cache.

The process that starts a run pins a model, so that every worker uses the same files:
`s3://bucket/tagger` becomes `s3://bucket/tagger#sha256:0123456789abcdef`, the hash of a folder of
these files; `anna/tagger` `anna/tagger@COMMIT`.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from sgpipe.errors import EngineError, StoreError, UserError, existing_model
from sgpipe.files.hub import HubModel
from sgpipe.files.stores import ObjectInfo, StorePath, is_uri
from sgpipe.utils import console
from sgpipe.utils.atomic import temporary_folder, write_text
from sgpipe.utils.hashing import PINNED, fingerprint, model_sha256

# Of a model: a folder of its own, or the checkpoints of a training.
_PLACES = ("", "best/", "last/")
_CONFIG = "config.json"
_OPEN_CLIP = "open_clip_config.json"
_COMMIT = re.compile("[0-9a-f]{40}")


def cache_folder() -> Path:
    """Return where sgpipe keeps files of this machine that no run keeps: SGPIPE_CACHE, by default
    ~/.cache/sgpipe.
    """
    folder = os.environ.get("SGPIPE_CACHE")
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sgpipe")


def pin_model(name: str, before: str = "") -> str:
    """Return a model of a store with the hash of its files, one of the hub with its commit; any
    other name unchanged.

    Args:
        before: what a run that is resumed says of its models; a commit in it stays, unless `name`
            has another one.

    Raises:
        UserError: there is no such model or no permission.
        EngineError: the store cannot be reached.
    """
    hub = HubModel.parse(name)
    if hub:
        known = re.search(rf"(?<![\w./-]){re.escape(hub.name)}@[0-9a-f]{{40}}", before)
        if known and not _COMMIT.fullmatch(hub.revision or ""):
            return known[0]
        with suppress(UserError, StoreError):
            return str(HubModel(hub.name, hub.config().name))
    if not is_uri(name) or PINNED in name:
        return name
    return f"{name}{PINNED}{_fetched(name).name}"


def local_model(name: str, *, config_only: bool = False) -> str:
    """Return the folder of a model of a store or the hub, fetched if it is not there; any other
    name unchanged.

    Raises as `pin_model`; UserError: it is a missing path, or has another hash.

    Args:
        config_only: config.json is enough.
    """
    hub = HubModel.parse(name)
    if hub:
        try:
            with _as_engine_errors():
                return str(hub.config() if config_only else hub.folder())
        except UserError as error:
            raise UserError(f"no such folder: {name}, and {error}") from None
    if not is_uri(name):
        return existing_model(name)
    uri, _, sha256 = name.partition(PINNED)
    return str(_fetched(uri, sha256))


def _fetched(uri: str, sha256: str = "") -> Path:
    """Return the folder of a model of a store, which is named by the hash of its files; "": of
    those that it has now.

    Beside it are `listing-…`, which say what hash the files have that the store lists so.
    """
    root = cache_folder() / "models" / fingerprint({"uri": uri})
    if sha256 and (root / sha256).is_dir():
        return root / sha256
    root.mkdir(parents=True, exist_ok=True)
    with _as_engine_errors(), FileLock(root / ".lock", thread_local=False):
        store = StorePath(uri)
        files = _listed(uri, store)
        states = {name: [info.size, info.state] for name, info in files.items()}
        listing = root / f"listing-{fingerprint(states)}"
        name = listing.read_text("utf-8") if listing.is_file() else ""
        if not name or not (root / name).is_dir():
            name = _download(uri, store, files, root)
            write_text(listing, name)
    if sha256 not in ("", name):
        raise UserError(f"the model {uri} is not the one that the run started with: it has changed")
    return root / name


def _download(uri: str, store: StorePath, files: Mapping[str, ObjectInfo], root: Path) -> str:
    """Download a model into a folder in `root`, and return the name of that, the hash of the
    files.
    """
    megabytes = sum(info.size for info in files.values()) / 1e6
    size = f"{console.count(len(files), 'file')}, {megabytes:,.1f} MB"
    console.progress().print(f"fetching the model {uri} ({size})", soft_wrap=True)
    with temporary_folder(root) as temporary:
        model = temporary / "model"
        for name, info in files.items():
            file = model / name
            file.parent.mkdir(parents=True, exist_ok=True)
            (store / info.name).get_file(file)
        sha256 = str(model_sha256(str(model))).removeprefix("sha256:")
        if not (root / sha256).is_dir():  # the same files may have been uploaded earlier
            os.replace(model, root / sha256)
    return sha256


def _listed(uri: str, store: StorePath) -> dict[str, ObjectInfo]:
    """Return the files of a model by their names in its folder, without hidden ones.

    Raises:
        UserError: it is not a model, or a file is outside its folder
    """
    store.check()
    infos = {info.name: info for info in store.list()}
    folder = _model_folder(infos)
    if folder is None:
        raise UserError(f"{uri} is not a model: it has no {_CONFIG}")
    files: dict[str, ObjectInfo] = {}
    for name in sorted(infos):
        if name.startswith(folder):
            file = name.removeprefix(folder)
            parts = file.split("/")
            if ".." in parts or file.startswith("/"):
                raise UserError(f"the model has a file outside its folder: {file!r}")
            if not any(part.startswith(".") for part in parts):
                files[file] = infos[name]
    return files


def _model_folder(names: Collection[str]) -> str | None:
    """Return where the model is: in the folder itself, or in a checkpoint of a training."""
    for folder in _PLACES:
        if f"{folder}{_CONFIG}" in names:
            return folder
    return "" if _OPEN_CLIP in names else None


@contextmanager
def _as_engine_errors() -> Iterator[None]:
    try:
        yield
    except (StoreError, FileNotFoundError) as error:
        raise EngineError(str(error)) from None
