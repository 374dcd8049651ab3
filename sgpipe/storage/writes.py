"""Writing objects into a store: whole, and if asked to, only where nobody else was faster.

Arrow's file systems know no conditions, and they begin every object as an upload of several parts, which stays in the
bucket if its process is killed. So objects are written by obstore, each in a single request.
"""

from __future__ import annotations

import configparser
import os
import re
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store
from pyarrow.fs import FileSystem

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion

FAILURES = (BaseError, OSError)
_NOT_IMPLEMENTED = re.compile(r"\b501 Not Implemented|<Code>NotImplemented</Code>")
_CONNECT_SECONDS, _RETRIES = 5, 2


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
        options: dict[str, Any] = {
            "client_options": {
                "timeout": timedelta(seconds=seconds),
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            },
            "retry_config": {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=2 * seconds)},
        }
        bucket = path.strip("/").partition("/")[0]
        self._store: S3Store | GCSStore | AzureStore
        if files.type_name == "s3":
            self._store = _s3(uri, bucket, files.region, options)
        elif files.type_name == "gcs":
            self._store = GCSStore(bucket, **options)
        else:
            account = (urlsplit(uri).hostname or "").partition(".")[0]
            self._store = AzureStore(bucket, account_name=account, **options)

    def put(self, name: str, data: bytes | Path) -> None:
        """Write an object, or a file as one, replacing an earlier one."""
        obstore.put(self._store, _key(name), data, use_multipart=False)

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


def failure(error: BaseException) -> str:
    """An error of Arrow's or obstore's in one line: what the store answered, or else the first line."""
    text = str(error).partition("\n\nDebug source")[0].strip()
    if code := re.search(r"<Code>(.*?)</Code>(?:\s*<Message>(.*?)</Message>)?", text, re.DOTALL):
        return f"{code[1]}: {code[2]}" if code[2] else code[1]
    return (text or type(error).__name__).splitlines()[0]


def _version(meta: PutResult | ObjectMeta) -> UpdateVersion:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}  # type: ignore[return-value]


def _key(name: str) -> str:
    return name.strip("/").partition("/")[2]


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
    if "AWS_ACCESS_KEY_ID" not in os.environ:
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
