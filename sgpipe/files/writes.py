"""Writing objects into a store: whole, and if asked to, only where nobody else was faster.

Arrow's file systems know no conditions, and they begin every object as an upload of several parts, which stays in the
bucket if its process is killed. So objects are written by obstore, each in a single request; only indexes of sources
of half a million images or more are so large that they are uploaded in parts, or they would have to be in memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from pyarrow.fs import FileSystem

from sgpipe.files.object_store import connect

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

_MOST_AT_ONCE = 256 << 20  # bytes
_NOT_IMPLEMENTED = re.compile(r"\b501 Not Implemented|<Code>NotImplemented</Code>")


class ConditionsError(Exception):
    """The store has no conditional writes."""


class ObjectWriter:
    """Writes objects under a URI. Every method raises one of `FAILURES`; a request ends after `seconds`."""

    def __init__(self, uri: str, files: FileSystem, path: str, seconds: float) -> None:
        """
        Args:
            files: Arrow's file system of the URI.
            path: of something in the bucket, as Arrow names it; the bucket comes first. So do the names of objects.
        """
        self._store = connect(uri, files, path, seconds)

    def put(self, name: str, data: bytes | Path) -> None:
        """Write an object, or a file as one, replacing an earlier one."""
        in_parts = isinstance(data, Path) and data.stat().st_size > _MOST_AT_ONCE
        obstore.put(self._store, _key(name), data, use_multipart=in_parts)

    def put_if(self, name: str, data: bytes, version: UpdateVersion | None) -> UpdateVersion | None:
        """Write an object if it still has this version, or, for None, if there is none.

        Returns its new version; None: somebody else was faster.

        Raises ConditionsError: the store says that it has no conditional writes.
        """
        try:
            written = obstore.put(self._store, _key(name), data, mode=version or "create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return None
        except NotSupportedError:
            raise ConditionsError from None
        except BaseError as error:
            if _NOT_IMPLEMENTED.search(str(error)):
                raise ConditionsError from None
            raise
        return _version(written)

    def get(self, name: str) -> tuple[bytes, UpdateVersion] | None:
        """A small object and its version; None if it does not exist."""
        try:
            found = obstore.get(self._store, _key(name))
            return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None


def _version(meta: PutResult | ObjectMeta) -> UpdateVersion:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}  # type: ignore[return-value]


def _key(name: str) -> str:
    return name.strip("/").partition("/")[2]
