"""Object stores: what sgpipe asks of obstore, and its errors in words of sgpipe."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, Literal

import obstore
from obstore import exceptions as refused
from obstore.store import from_url

from sgpipe.errors import StoreError, UserError, first_line

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, UpdateVersion
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
PAGE = 1000  # objects of an answer
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


class ReplacedError(StoreError):
    """An object is not the version that it was."""


class CutError(StoreError):
    """An object, or a range of it, ends early."""


class AccessError(StoreError):
    """The store refuses the keys, or what they may do."""


class UnconditionalError(StoreError):
    """The store has no writes with a condition."""


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
        """Read a URI.

        Raises:
            UserError: of an unknown scheme, or the URI contains keys or a query.
        """
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

    @property
    def parent(self) -> StorePath:
        """The folder that it is in; of a bucket itself the bucket."""
        folder = copy(self)
        folder._prefix = self._prefix.rpartition("/")[0]
        return folder

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
        """Check that the bucket exists and may be listed.

        Raises:
            UserError: there is no such bucket, or it may not be listed.
            StoreError: it cannot be reached.
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

    def folders(self) -> list[StorePath]:
        """Return the folders in this one, which are what objects have in common up to a slash."""
        with self._naming():
            listing = obstore.list_with_delimiter(self._reads, self._prefix)
            names = [str(prefix).rpartition("/")[2] for prefix in listing["common_prefixes"]]
        return [self / name for name in names]

    def list(self) -> Iterator[ObjectInfo]:
        """Yield the objects of the folder, those in folders of it included, as the store sends
        them.
        """
        for page in self.pages():
            yield from page

    def pages(self, after: str = "") -> Iterator[Sequence[ObjectInfo]]:
        """Yield the same by the answers of the store, of up to `PAGE` objects.

        Args:
            after: what stores that sort their objects begin behind.
        """
        offset = f"{self._prefix}/{after}".lstrip("/") if after else None
        with self._naming():
            for chunk in obstore.list(self._reads, self._prefix, offset=offset, chunk_size=PAGE):
                yield [self._info(meta) for meta in chunk if meta["path"] != self._prefix]

    def _info(self, meta: ObjectMeta) -> ObjectInfo:
        """Return an object of the folder."""
        name = meta["path"].removeprefix(self._prefix).lstrip("/")
        return ObjectInfo(name, meta["size"], meta["e_tag"], meta["last_modified"])

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
        take such a condition and ignore it.

        Raises:
            UnconditionalError: the store refuses conditions.
        """
        mode: UpdateVersion | Literal["create"] = version or "create"
        with self._naming(writes=True):
            try:
                obstore.put(self._writes, self._prefix, data, mode=mode, use_multipart=False)
            except (refused.AlreadyExistsError, refused.PreconditionError):
                return False
            except (refused.NotSupportedError, NotImplementedError) as error:
                raise UnconditionalError(f"{self}: {failure(error)}") from None
            except refused.BaseError as error:
                if _NOT_IMPLEMENTED.search(str(error)):
                    raise UnconditionalError(f"{self}: {failure(error)}") from None
                raise
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
    """Return this process's connection to a bucket; a request ends after `seconds`.

    Raises:
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
