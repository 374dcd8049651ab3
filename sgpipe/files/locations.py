"""Locations: files and folders of this machine, as a `Path`, or in a store or on the hub, as a
`StorePath`.

`location` makes one of what a user typed, once; from then on `location / name` works for both.
obstore retries, and knows the versions of objects (ETags); nothing renames or appends. Keys are in
the environment.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, cast

import obstore
import pyarrow as pa
from obstore import exceptions as refused
from obstore.store import from_url

from sgpipe.errors import StoreError, UserError, add_filename, existing_file, first_line
from sgpipe.files.hub import DATASETS, HubDataset
from sgpipe.utils.prefetch import prefetch

if TYPE_CHECKING:
    from obstore import GetOptions, UpdateVersion
    from obstore.store import ObjectStore as Connection

_SCHEMES = ("s3", "gs", "abfs", "abfss", "hf")
_EXPECTED = "expected s3://, gs:// or abfs:// and a bucket"
_CONNECT_SECONDS = 5
# of one request
_READ_SECONDS = 20.0
_READ_RETRIES = 8
_WRITE_SECONDS = 1800.0
_WRITE_RETRIES = 2
# Bytes; what is uploaded in parts stays in the bucket if its process is killed.
_MOST_AT_ONCE = 256 << 20
_ATTEMPTS = 3  # to read a body that ends early
_BUFFER = 8 << 20  # of a file: a request takes so long that small ones cost more
_REFUSED = re.compile(
    r"<Code>(AccessDenied|AllAccessDisabled|AccountProblem|ExpiredToken|InvalidAccessKeyId|InvalidToken|"
    r"RequestTimeTooSkewed|SignatureDoesNotMatch|TokenRefreshRequired)</Code>|169.254.169.254"
)
_ANSWER = re.compile(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", re.DOTALL)
_NOT_IMPLEMENTED = re.compile(r"\b501 Not Implemented|<Code>NotImplemented</Code>")
_ANONYMOUS = ("s3://anonymous@", "gs://anonymous@")  # what the public may read
# Where a machine of a cloud gets its keys, asked if the environment has none.
_NO_KEYS = "169.254.169.254"
# Plain or gzip, which its content shows, not its name.
TextFile: TypeAlias = io.BufferedReader | gzip.GzipFile
_SMALL_BUFFER = 256 << 10  # bytes that are read at least, of an object of which parts are needed
_WHOLE = 4 << 20  # bytes: smaller shards are read at once
_OPENED_AHEAD = 16  # shards
_GZIP = b"\x1f\x8b"
_ON_HUB = re.compile(rf"{DATASETS}(?P<dataset>[^/]+/[^/]+)/(?P<file>.+)")


class ReplacedError(StoreError):
    """An object is not the version that it was."""


class CutError(StoreError):
    """An object, or a range of it, ends early."""


class AccessError(StoreError):
    """The store refuses the keys, or what they may do."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object of a store, or a file. `name` is relative to the location; `version`: its ETag, if
    there is any.
    """

    name: str
    size: int
    version: str | None
    modified: datetime | None = None

    @property
    def state(self) -> str:
        """A text that differs if the object has changed, as far as the store or file system
        tells.
        """
        return self.version or str(self.modified or "")


def is_uri(text: str) -> bool:
    return "://" in text


class StorePath:
    """A folder or an object of a store by its URI, such as `s3://bucket/images`: to a store what
    `Path` is to a disk.

    It travels without connections, and threads may share it. Every method but `__init__` raises
    StoreError if the store cannot be reached, after retries; AccessError if it refuses.
    """

    def __init__(self, uri: str) -> None:
        """Raises UserError: of an unknown scheme, or the URI contains keys or a query."""
        if "?" in uri:
            raise UserError(
                "the URI of an object store must not have a query (?…); set it in the environment"
            )
        scheme, separator, rest = uri.partition("://")
        bucket, _, key = rest.partition("/")
        # of Azure, this may be a container; keys may contain slashes
        user = rest.rpartition("@")[0].partition("/")[0]
        if ":" in user or ("@" in bucket and not uri.startswith(("abfs", *_ANONYMOUS))):
            raise UserError(
                "the URI of an object store must not contain keys; set them in the environment"
            )
        if not separator or scheme not in _SCHEMES:
            raise UserError(f"{uri} is not an object store: {_EXPECTED}")
        if not bucket:
            raise UserError(f"{uri} names no bucket: expected {scheme}://BUCKET/FOLDER")
        self._bucket = f"{scheme}://{bucket}"
        self._prefix = _normal(key)

    @property
    def uri(self) -> str:
        return f"{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def name(self) -> str:
        return self.uri.rpartition("/")[2]

    def __truediv__(self, name: str) -> StorePath:
        child = copy(self)
        child._prefix = _normal(f"{self._prefix}/{name}")
        return child

    def __str__(self) -> str:
        return self.uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def check(self) -> None:
        """Raises UserError: there is no such bucket, or it may not be listed; StoreError: it cannot
        be reached.
        """
        try:
            next(self.list(), None)
        except AccessError as error:
            raise UserError(
                f"{error}; the keys in the environment must be allowed to list and read it"
            ) from None
        except StoreError as error:
            if "NoSuchBucket" in str(error) or "not found" in str(error):
                raise UserError(str(error)) from None
            raise

    def read(self) -> bytes | None:
        """Return the whole object, or None if there is none."""
        with suppress(FileNotFoundError), self._naming():
            stored = obstore.get(self._reads, self._prefix)
            if stored.meta["size"] <= _BUFFER:
                return bytes(stored.bytes())
            with self.open() as file:
                return file.read()
        return None

    def version(self) -> UpdateVersion | None:
        """Return the version of the object; None if there is none."""
        with suppress(FileNotFoundError), self._naming():
            meta = obstore.head(self._reads, self._prefix)
            return {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}  # type: ignore[return-value]
        return None

    def get_file(self, path: Path) -> None:
        """Download the object into a file. Raises FileNotFoundError."""
        with self.open() as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _BUFFER)

    def read_range(self, start: int, length: int, version: str | None = None) -> bytes:
        """Return `length` bytes. Raises FileNotFoundError; ReplacedError: another version;
        CutError: it ends before.
        """
        data = self.read_start(length, version, start) if length else b""
        if len(data) != length:
            raise CutError(f"{self} is truncated: it ends within bytes {start} to {start + length}")
        return data

    def read_start(self, length: int, version: str | None = None, start: int = 0) -> bytes:
        """Return up to `length` bytes. Raises FileNotFoundError; ReplacedError: not of this version;
        CutError.
        """
        options: GetOptions = {"range": (start, start + length)}
        if version is not None:
            options["if_match"] = version
        for _ in range(_ATTEMPTS):
            with self._naming():
                stored = obstore.get(self._reads, self._prefix, options=options)
                try:
                    return bytes(stored.bytes())
                except refused.BaseError as error:
                    why = failure(error)
        raise CutError(f"{self} is truncated, or the connection dropped: {why}")

    def head(self) -> ObjectInfo | None:
        """Return what the object is; None if there is none."""
        with suppress(FileNotFoundError), self._naming():
            meta = obstore.head(self._reads, self._prefix)
            return ObjectInfo(self.name, meta["size"], meta["e_tag"], meta["last_modified"])
        return None

    def list(self) -> Iterator[ObjectInfo]:
        """Yield the objects of the folder, those in folders of it included, as the store sends
        them.
        """
        with self._naming():
            for chunk in obstore.list(self._reads, self._prefix, chunk_size=1000):
                for meta in chunk:
                    name = meta["path"].removeprefix(self._prefix).lstrip("/")
                    if name:  # not the folder's own object
                        yield ObjectInfo(name, meta["size"], meta["e_tag"], meta["last_modified"])

    def open(self, mode: Literal["rb"] = "rb", buffering: int = _BUFFER) -> io.BufferedReader:
        """Open the object, as it is now, as a file read by `buffering` bytes or more. Raises
        FileNotFoundError.
        """
        info = self.head()
        if info is None:
            raise FileNotFoundError(str(self))
        return io.BufferedReader(_ObjectFile(self, info), buffering)

    def put(self, data: bytes | Path) -> None:
        """Write the object, or a file as one, whole, replacing an earlier one."""
        in_parts = isinstance(data, Path) and data.stat().st_size > _MOST_AT_ONCE
        with self._naming(writes=True):
            obstore.put(self._writes, self._prefix, data, use_multipart=in_parts)

    def put_if(self, data: bytes, version: UpdateVersion | None) -> bool:
        """Write the object if it is of this version (None: absent); return whether. Some stores
        always do.
        """
        with self._naming(writes=True):
            try:
                obstore.put(
                    self._writes, self._prefix, data, mode=version or "create", use_multipart=False
                )
            except (refused.AlreadyExistsError, refused.PreconditionError):
                return False
            except refused.NotSupportedError:
                self.put(data)
            except refused.BaseError as error:
                if not _NOT_IMPLEMENTED.search(str(error)):
                    raise
                self.put(data)
        return True

    def unlink(self, missing_ok: bool = True) -> None:
        with suppress(FileNotFoundError), self._naming():
            obstore.delete(self._reads, self._prefix)

    @contextmanager
    def _naming(self, writes: bool = False) -> Iterator[None]:
        """Turn the errors of obstore, which have many lines, into one line that names the
        object.
        """
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            if writes or "NoSuchBucket" in str(error):
                raise StoreError(f"{self}: {failure(error)}") from None
            raise FileNotFoundError(str(self)) from None
        except refused.PreconditionError:
            raise ReplacedError(f"{self} was replaced while it was in use") from None
        except (refused.PermissionDeniedError, refused.UnauthenticatedError) as error:
            raise AccessError(f"{self}: {failure(error)}") from None
        except (refused.BaseError, OSError) as error:
            raise self._named(error) from None

    def _named(self, error: Exception) -> StoreError:
        """Return an error that names the object."""
        text = str(error)
        if "<Code>InvalidRange</Code>" in text:
            return CutError(f"{self} is truncated: it ends before the range that is read")
        kind = AccessError if _REFUSED.search(text) else StoreError
        return kind(f"{self}: {failure(error)}")

    @property
    def _reads(self) -> Connection:
        return connect(self._bucket, _READ_SECONDS, _READ_RETRIES)

    @property
    def _writes(self) -> Connection:
        return connect(self._bucket, _WRITE_SECONDS, _WRITE_RETRIES)


def _normal(key: str) -> str:
    """Return a key without empty parts and dots."""
    return "/".join(part for part in key.split("/") if part not in ("", "."))


class _ObjectFile(io.RawIOBase):
    """An object as a file that `io.BufferedReader` reads."""

    def __init__(self, store: StorePath, info: ObjectInfo) -> None:
        self._store = store
        self._info = info
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}
        self._at = max(0, starts[whence] + offset)
        return self._at

    def readall(self) -> bytes:
        """Return what is left, by requests of megabytes; without this method, of 8 kB."""
        return b"".join(iter(lambda: self.read(_BUFFER) or b"", b""))

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._info.size - self._at))
        buffer[:length] = self._store.read_range(self._at, length, self._info.version)
        self._at += length
        return length


@cache
def connect(uri: str, seconds: float, retries: int) -> Connection:
    """Return this process's connection to a bucket; a request ends after `seconds`. Raises
    UserError: not a store.
    """
    options: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "allow_http": True,  # if the endpoint is
        },
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=2 * seconds)},
    }
    is_anonymous = uri.startswith(_ANONYMOUS)
    if is_anonymous:
        options["skip_signature"] = True
    if uri.startswith("s3://"):
        if not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & os.environ.keys():
            from pyarrow.fs import resolve_s3_region

            with suppress(OSError, ValueError):  # the first request says why
                options["region"] = resolve_s3_region(uri.removeprefix("s3://").rpartition("@")[2])
        if "AWS_ACCESS_KEY_ID" not in os.environ and not is_anonymous:
            with suppress(ImportError, ValueError):  # boto3 is not installed, or has no keys either
                from obstore.auth.boto3 import Boto3CredentialProvider

                options["credential_provider"] = Boto3CredentialProvider()
    try:
        return from_url(uri, **options)
    except (refused.BaseError, ValueError) as error:
        raise UserError(f"{uri} is not an object store: {_EXPECTED} ({failure(error)})") from None


def failure(error: BaseException) -> str:
    """Return an error of obstore's in one line: what the store answered, or else the first line."""
    text = str(error).partition("\n\nDebug source")[0].strip()
    if _NO_KEYS in text:
        return (
            f"{gethostname()} has no keys in its environment, in a cluster that of its `ray start`"
            " (profiles and SSO need `pip install sgpipe[aws]`; for a public bucket, write"
            " anonymous@ before its name)"
        )
    answer = _ANSWER.search(text)
    if answer:
        return ": ".join(filter(None, answer.groups()))
    return first_line(error)


Location: TypeAlias = Path | StorePath


def location(place: str | Location) -> Location:
    """Return the location that a text names. Raises UserError: a URI is not of a store, or contains
    keys.
    """
    if isinstance(place, str):
        return StorePath(place) if is_uri(place) else Path(place)
    return place


def below(base: Location | None, place: str | Location) -> Location:
    """Return a place below `base`, unless it is absolute or a URI itself."""
    place = location(place)
    if base is None or isinstance(place, StorePath) or place.is_absolute():
        return place
    return base / str(place)


def absolute_location(place: str | Location) -> Location:
    """Return a location that does not depend on the working folder."""
    place = location(place)
    return place.expanduser().absolute() if isinstance(place, Path) else place


@contextmanager
def open_file(path: Location) -> Iterator[Any]:
    """Open a file for random access: of this machine mapped into memory. Raises OSError, also while
    it is read.
    """
    if isinstance(path, Path):
        with add_filename(path), pa.memory_map(str(path)) as file:
            yield file
        return
    try:
        with path.open(buffering=_SMALL_BUFFER) as file:
            yield pa.PythonFile(file, "r")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None


def open_stream(path: str | Location) -> io.BufferedReader:
    """Open a file to be read from its beginning to its end. Raises OSError; StoreError."""
    return _local(path).open("rb")


def read_range(path: Location, start: int, length: int, version: str | None = None) -> bytes:
    """Return `length` bytes. Raises OSError; ReplacedError: not of this version; CutError: it ends
    before.
    """
    if isinstance(path, StorePath):
        return path.read_range(start, length, version)
    with path.open("rb") as file:
        if version not in (None, _version(os.fstat(file.fileno()))):
            raise ReplacedError(f"{path} was replaced while it was in use")
        file.seek(start)
        data = file.read(length)
    if len(data) < length:
        raise CutError(f"{path} is truncated: it ends at byte {start + len(data)}")
    return data


def info_of(path: Location) -> ObjectInfo | None:
    """Return size and version of a file; None if there is none."""
    if isinstance(path, StorePath):
        return path.head()
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ObjectInfo(path.name, status.st_size, _version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def content_id(path: str | Location) -> list[str | int | None]:
    """Return what tells a file's content unread: place, size, time or version. Raises UserError: no
    such file.
    """
    local = _local(path)
    if isinstance(local, Path):
        status = existing_file(local).stat()
        return [str(local.resolve()), status.st_size, status.st_mtime_ns]
    info = local.head()
    if info is None:
        local.check()
        raise UserError(f"no such file: {local.uri}")
    return [local.uri, info.size, info.state]


def _local(path: str | Location) -> Location:
    """Return a location that can be read: a file of the hub in its cache. Raises UserError: there
    is no such file.
    """
    path = location(path)
    if isinstance(path, Path):
        return path
    if ".." in path.uri.split("/"):
        raise UserError(f"no such file: {path.uri}: objects have no .. in their names")
    if not path.uri.startswith("hf://"):
        return path
    parts = _ON_HUB.fullmatch(path.uri)
    dataset = HubDataset.parse(parts["dataset"]) if parts else None
    if parts is None or dataset is None:
        raise UserError(f"{path.uri} is not a file of the hub: expected {DATASETS}USER/NAME/FILE")
    return dataset.fetch(parts["file"])


def sizes(folder: Location) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its last name; of none where there is
    no folder.
    """
    if isinstance(folder, StorePath):
        return {info.name: info.size for info in folder.list() if "/" not in info.name}
    size_of: dict[str, int] = {}
    if folder.is_dir():
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # a running job may have replaced it
                size_of[entry.name] = entry.stat().st_size
    return size_of


def open_shard_file(path: Location) -> Path | BinaryIO:
    """Return a shard as pyarrow reads it, large ones of a store by ranges. Raises
    FileNotFoundError; StoreError.
    """
    if isinstance(path, Path):
        return path
    info = path.head()
    if info is None:
        raise FileNotFoundError(str(path))
    if info.size > _WHOLE:
        return path.open(buffering=1)  # who reads Parquet knows what it needs
    return io.BytesIO(path.read_range(0, info.size, info.version))


def opened_ahead(paths: Sequence[Location]) -> Generator[BinaryIO | None, None, None]:
    """Shards in a store as `open_shard_file` opens them, while threads open the next ones; None:
    missing, or a file.
    """
    if not paths or isinstance(paths[0], Path):
        yield from [None] * len(paths)
        return

    def opened_or_none(path: Location) -> BinaryIO | None:
        with suppress(FileNotFoundError):  # whoever opens it again says so
            return cast(BinaryIO, open_shard_file(path))
        return None

    with prefetch(opened_or_none, paths, _OPENED_AHEAD, _OPENED_AHEAD + 1) as opened:
        yield from opened


@contextmanager
def open_text(path: Location | str) -> Iterator[TextFile]:
    """Open a text file, decompressed as it is read. Raises OSError; UserError: it is empty or, also
    later, damaged.
    """
    try:
        with open_stream(path) as raw:
            compressed = raw.peek(len(_GZIP)).startswith(_GZIP)
            with gzip.GzipFile(fileobj=raw) if compressed else raw as file:
                if not file.peek(1):
                    raise UserError(f"{path} is empty")
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is cut short or corrupt ({error}); copy or download it again"
        ) from None


def read_text(path: Location, kind: str) -> str:
    """Return a small text file, whose kind messages name. Raises UserError: it cannot be read, or
    is not UTF-8.
    """
    try:
        with open_text(path) as file:
            return file.read().decode("utf-8-sig")
    except StoreError:
        raise
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{kind} {path} is not UTF-8 text (plain or gzip)") from None


def text_sha256(path: str | Location) -> str:
    """SHA-256 of a file's content, decompressed if it is compressed by gzip. Raises as
    `open_text`.
    """
    with open_text(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ends(path: Location, length: int) -> tuple[bytes, bytes]:
    """Return both ends of a text file, of gzip only the first. Raises as `open_text`; UserError: it
    is a pipe.
    """
    with open_text(path) as file:
        if not file.seekable():
            raise UserError(
                f"{path} is a pipe, but it is read more than once; save it as a file, plain or gzip"
            )
        head = file.read(length)
        if isinstance(file, gzip.GzipFile):
            return head, b""
        file.seek(max(0, file.seek(0, 2) - length))
        return head, file.read()
