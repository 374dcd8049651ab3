"""Files that are on this machine, in an object store or on the hub: annotations and captions, read once as a stream.

A URI that has been a `Path` is `s3:/bucket/file`; `uri_of` finds it again.
"""

from __future__ import annotations

import re
from hashlib import file_digest
from io import BufferedReader
from pathlib import Path
from typing import cast

from sgpipe.errors import UserError, existing_file
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.files.object_store import AccessError, ObjectInfo, StorePath, is_uri

_SLASHES = re.compile(r"^(\w{2,}):/+(?=[^/])")
_OPTION = re.compile(r"(endpoint_override=https?):/+")
_ON_HUB = re.compile(rf"{DATASETS}(?P<dataset>[^/]+/[^/]+)/(?P<file>.+)")


def uri_of(path: Path | str | StorePath) -> str | None:
    """The URI that a path stands for; None: it is that of a folder or file."""
    if isinstance(path, StorePath):
        return path.uri
    text = _OPTION.sub(r"\1://", _SLASHES.sub(r"\1://", str(path)))
    return text if is_uri(text) else None


def joined(base: Path | None, path: Path | str) -> Path:
    """A path below `base`, which may be a URI, unless the path is absolute or a URI itself."""
    uri = None if base is None else uri_of(base)
    if base is None or uri_of(path):
        return Path(path)
    if uri is None or Path(path).is_absolute():
        return base / path
    place, mark, options = uri.partition("?")
    return Path(f"{place.rstrip('/')}/{path}{mark}{options}")


def shown_path(path: Path | str) -> Path | str:
    """A path, or the URI that it is, as messages and recipes have it."""
    return uri_of(path) or path


def name_of(path: Path) -> str:
    """The last name of a path, or of a URI without its options."""
    return path.name if (uri := uri_of(path)) is None else uri.partition("?")[0].rpartition("/")[2]


def open_stored(path: Path | str) -> BufferedReader:
    """A file to read from its beginning to its end.

    Raises OSError: it is missing or cannot be read; StoreError: its store cannot be reached.
    """
    uri = uri_of(path)
    if uri is None:
        return Path(path).open("rb")
    if (fetched := _fetched(uri)) is not None:
        return fetched.open("rb")
    reader, name = _split(uri)
    return cast(BufferedReader, reader.open(name))


def stamp_stored(path: Path | str) -> list[str | int | None]:
    """What identifies the content of a file without reading it: where it is, its size, its time or version.

    Raises UserError: it is missing, or may not be read; StoreError: its store cannot be reached.
    """
    uri = uri_of(path)
    local = Path(path) if uri is None else _fetched(uri)
    if local is not None:
        status = existing_file(local).stat()
        return [str(local.resolve()), status.st_size, status.st_mtime_ns]
    assert uri is not None
    info = _info(uri)
    return [uri, info.size, info.version or info.modified.isoformat()]


def stored_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes. Raises as `open_stored`."""
    with open_stored(path) as file:
        return file_digest(file, "sha256").hexdigest()


def _info(uri: str) -> ObjectInfo:
    reader, name = _split(uri)
    try:
        info = reader.head(name)
    except AccessError as error:
        raise UserError(f"{error}; the keys in the environment must be allowed to read it") from None
    if info is None:
        reader.check()
        raise UserError(f"no such file: {uri}")
    return info


def _fetched(uri: str) -> Path | None:
    """A file of the hub, in its cache; None: the URI is that of a store."""
    if not uri.startswith("hf://"):
        return None
    found = _ON_HUB.fullmatch(uri)
    dataset = HubDataset.parse(found["dataset"]) if found else None
    if found is None or dataset is None:
        raise UserError(f"{uri} is no file of the hub: expected {DATASETS}USER/NAME/FILE")
    return dataset.fetch(found["file"])


def _split(uri: str) -> tuple[StorePath, str]:
    """The reader of the folder of an object, and its name there. Raises UserError: objects have no such names."""
    path, mark, options = uri.partition("?")
    if ".." in path.split("/"):
        raise UserError(f"no such file: {uri}: objects have no .. in their names")
    folder, _, name = path.rpartition("/")
    return StorePath(folder + mark + options), name
