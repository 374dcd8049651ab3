"""Reading objects of a store (S3, Google, Azure) by the URI of their location: whole, by ranges, or as a file.

Arrow opens the location, for it finds the region of a bucket; obstore reads, for it knows the versions of objects
(ETags), retries, and keeps connections. Keys come from the environment alone.
"""

from __future__ import annotations

import configparser
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import parse_qs, urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store
from pyarrow.fs import FileSystem

from sgpipe.errors import StoreError, UserError

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

FAILURES = (BaseError, OSError)
_KINDS = {"s3": "s3://", "gcs": "gs://", "abfs": "abfs://"}  # by Arrow's names
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hf")
_CONNECT_SECONDS, _READ_SECONDS, _READ_RETRIES = 5, 20.0, 8
_ATTEMPTS = 3  # to read a body that is cut
_BUFFER = 8 << 20  # of a file: a request takes so long that small ones cost more
_REFUSED = re.compile(
    r"<Code>(AccessDenied|AllAccessDisabled|AccountProblem|ExpiredToken|InvalidAccessKeyId|InvalidToken|"
    r"RequestTimeTooSkewed|SignatureDoesNotMatch|TokenRefreshRequired)</Code>"
)
_ANONYMOUS = ("s3://anonymous@", "gs://anonymous@", "gcs://anonymous@")  # Arrow's form for what the public may read
_NO_KEYS = "169.254.169.254"  # where a machine of a cloud gets its keys, asked if the environment has none


class ReplacedError(StoreError):
    """An object is not the version that it was."""


class CutError(StoreError):
    """An object, or a range of it, ends early, however often it is read."""


class AccessError(StoreError):
    """The store refuses the keys, or what they may do."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object of a store. `name` is relative to the location; `version` is its ETag, if the store has any."""

    name: str
    size: int
    version: str | None
    modified: datetime


def is_uri(text: str) -> bool:
    """Whether the text is a URI of a store or the hub, and not a path."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme in _SCHEMES


class ObjectReader:
    """Reads the objects under a URI such as `s3://bucket/images`. Threads may share it; it travels without connections.

    A name that has no object raises FileNotFoundError. Every method but `__init__` raises StoreError if the store
    cannot be reached, after retries (AccessError: it refuses), and UserError if the URI is not that of a store.
    """

    def __init__(self, uri: str) -> None:
        """Raises UserError: of an unknown scheme, or the URI holds keys."""
        refuse_keys(uri)
        if not is_uri(uri):
            raise UserError(f"{uri} is not an object store: expected {', '.join(_KINDS.values())} and a bucket")
        self.uri = uri
        self.location = uri.partition("?")[0].rstrip("/")

    def check(self) -> None:
        """Raises UserError: there is no such bucket, or it may not be listed; StoreError: it cannot be reached."""
        try:
            next(self.list(), None)
        except AccessError as error:
            raise UserError(f"{error}; the keys in the environment must be allowed to list and read it") from None
        except StoreError as error:
            if "NoSuchBucket" in str(error) or "not found" in str(error):
                raise UserError(str(error)) from None
            raise

    def read(self, name: str) -> bytes:
        """A whole object."""
        return self._get(name, {})

    def read_range(self, name: str, start: int, length: int, version: str | None = None) -> bytes:
        """`length` bytes of an object.

        Raises ReplacedError: it is not of this version; CutError: it ends before.
        """
        if not length:
            return b""
        options: GetOptions = {"range": (start, start + length)}
        if version is not None:
            options["if_match"] = version
        data = self._get(name, options)
        if len(data) != length:
            raise CutError(f"{self._at(name)} is cut: it ends within bytes {start} to {start + length}")
        return data

    def read_start(self, name: str, most: int, version: str | None = None) -> bytes:
        """The first `most` bytes of an object, or all of them. Raises ReplacedError: it is not of this version."""
        return self._get(name, {"range": (0, most), **({} if version is None else {"if_match": version})})

    def head(self, name: str) -> ObjectInfo | None:
        """What an object is; None if there is none."""
        with suppress(FileNotFoundError), self._naming(name):
            return self._info(obstore.head(self._store, self._key(name)))
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects of a folder, those in folders of it included, as the store sends them."""
        with self._naming():
            for chunk in obstore.list(self._store, self._key(prefix), chunk_size=1000):
                infos = (self._info(meta) for meta in chunk)
                yield from (info for info in infos if info.name)  # a folder's own object, which some tools make

    def open(self, name: str, buffer: int = _BUFFER) -> BinaryIO:
        """A file of an object, read in ranges of at least `buffer` bytes of the version that it has now."""
        info = self.head(name)
        if info is None:
            raise FileNotFoundError(self._at(name))
        return cast(BinaryIO, io.BufferedReader(_ObjectFile(self, info), buffer))

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "location": self.location}

    def _get(self, name: str, options: GetOptions) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            with self._naming(name):
                found = obstore.get(self._store, self._key(name), options=options)
                try:
                    return bytes(found.bytes())
                except BaseError as error:
                    if attempt == _ATTEMPTS:
                        raise CutError(f"{self._at(name)} is cut, or its connection is: {failure(error)}") from None
        raise AssertionError("unreachable")

    @contextmanager
    def _naming(self, name: str = "") -> Iterator[None]:
        """Turn the errors of obstore, which have many lines, into one line that names the object."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(f"{self.location}: {failure(error)}") from None
            raise FileNotFoundError(self._at(name)) from None
        except PreconditionError:
            raise ReplacedError(f"{self._at(name)} was replaced while it was in use") from None
        except FAILURES as error:
            if "<Code>InvalidRange</Code>" in str(error):
                raise CutError(f"{self._at(name)} is cut: it ends before the range that is read") from None
            refused = isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(str(error))
            kind = AccessError if refused or _NO_KEYS in str(error) else StoreError
            raise kind(f"{self._at(name)}: {failure(error)}") from None

    def _at(self, name: str) -> str:
        return f"{self.location}/{name}" if name else self.location

    def _key(self, name: str) -> str:
        key = str(PurePosixPath(self._prefix, name))
        return "" if key == "." else key

    def _info(self, meta: ObjectMeta) -> ObjectInfo:
        name = meta["path"].removeprefix(self._prefix).lstrip("/")
        return ObjectInfo(name, meta["size"], meta["e_tag"], meta["last_modified"])

    @cached_property
    def _opened(self) -> tuple[S3Store | GCSStore | AzureStore, str]:
        files, path = open_location(self.uri)
        return connect(self.uri, files, path, _READ_SECONDS, _READ_RETRIES), path.strip("/").partition("/")[2]

    @property
    def _store(self) -> S3Store | GCSStore | AzureStore:
        return self._opened[0]

    @property
    def _prefix(self) -> str:
        return self._opened[1]


class _ObjectFile(io.RawIOBase):
    """An object as a file that `io.BufferedReader` reads."""

    def __init__(self, reader: ObjectReader, info: ObjectInfo) -> None:
        self._reader, self._info, self._at = reader, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}[whence])
        return self._at

    def readall(self) -> bytes:
        """What is left, by requests of megabytes; without this method, of 8 kB."""
        return b"".join(iter(lambda: self.read(_BUFFER) or b"", b""))

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._info.size - self._at))
        buffer[:length] = self._reader.read_range(self._info.name, self._at, length, self._info.version)
        self._at += length
        return length


def refuse_keys(uri: str) -> None:
    """Raises UserError: the URI holds keys. A container of Azure may stand where a user name would."""
    user, at, _ = uri.partition("://")[2].partition("/")[0].rpartition("@")
    if at and (":" in user or not uri.startswith(("abfs", *_ANONYMOUS))):
        raise UserError("the URI of an object store must not hold keys; give them in the environment")


def open_location(uri: str) -> tuple[FileSystem, str]:
    """Arrow's file system of a URI, and the path in it: bucket first.

    Raises UserError: it is not the URI of a store, or holds keys; StoreError: it cannot be reached.
    """
    refuse_keys(uri)
    try:
        files, path = FileSystem.from_uri(uri)
    except pa.ArrowException as error:
        raise UserError(f"{uri} is not an object store: {str(error).splitlines()[0]}") from None
    except OSError as error:  # it looks up the bucket's region
        raise StoreError(f"{uri.partition('?')[0].rstrip('/')}: {failure(error)}") from None
    if files.type_name not in _KINDS or not path.strip("/"):
        raise UserError(f"{uri} is not an object store: expected {', '.join(_KINDS.values())} and a bucket")
    return files, path


def connect(
    uri: str, files: FileSystem, path: str, seconds: float, retries: int = 2
) -> S3Store | GCSStore | AzureStore:
    """obstore's store of the bucket that a URI names.

    Args:
        files, path: see `open_location`.
        seconds: after which a request ends.
    """
    options: dict[str, Any] = {
        "client_options": {
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        },
        "retry_config": {"max_retries": retries, "retry_timeout": timedelta(seconds=2 * seconds)},
    }
    bucket = path.strip("/").partition("/")[0]
    if uri.startswith(_ANONYMOUS):
        options["skip_signature"] = True
    if files.type_name == "s3":
        return _s3(uri, bucket, files.region, options)
    if files.type_name == "gcs":
        return GCSStore(bucket, **options)
    account = (urlsplit(uri).hostname or "").partition(".")[0]
    return AzureStore(bucket, account_name=account, **options)


def failure(error: BaseException) -> str:
    """An error of Arrow's or obstore's in one line: what the store answered, or else the first line."""
    text = str(error).partition("\n\nDebug source")[0].strip()
    if _NO_KEYS in text:
        return "the environment has no keys for it (for a public bucket, write anonymous@ before its name)"
    if code := re.search(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", text, re.DOTALL):
        return f"{code[1]}: {code[2]}" if code[2] else code[1]
    return (text or type(error).__name__).splitlines()[0]


def _s3(uri: str, bucket: str, region: str, options: dict[str, Any]) -> S3Store:
    """A store of S3's form, with the endpoint and the keys that Arrow takes from its URI and the environment."""
    query = {name: values[-1] for name, values in parse_qs(urlsplit(uri).query).items()}
    named = (os.environ.get(variable) for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    endpoint = query.get("endpoint_override") or next(filter(None, named), None)
    if endpoint:
        if "://" not in endpoint:
            endpoint = f"{query.get('scheme', 'https')}://{endpoint}"
        options["endpoint"] = endpoint
        options["client_options"]["allow_http"] = endpoint.startswith("http://")
    if "AWS_ACCESS_KEY_ID" not in os.environ and "skip_signature" not in options:
        options.update(_profile())
    return S3Store(bucket, region=region, **options)


def _profile() -> dict[str, str]:
    """The keys of the profile in ~/.aws/credentials, which obstore does not read; empty if there are none."""
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    with suppress(OSError, configparser.Error, UnicodeDecodeError):
        parser.read(file, encoding="utf-8")
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    values = parser[profile] if parser.has_section(profile) else {}
    names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
    names["aws_session_token"] = "session_token"
    return {ours: values[theirs] for theirs, ours in names.items() if theirs in values}
