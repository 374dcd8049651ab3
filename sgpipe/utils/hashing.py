"""Hashes of files and settings, and what differs between two settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(identity: Mapping[str, Any]) -> str:
    """A short hash of plain nested values, such as the identity of a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], absent: Mapping[str, Any] | None = None
) -> list[str]:
    """The settings in which two identities differ, one line each; `absent`: values of keys that one may lack."""
    old, new = ({**(absent or {}), **dict(_flatten(identity))} for identity in (before, now))
    keys = sorted({*old, *new}, key=str)
    return [f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
