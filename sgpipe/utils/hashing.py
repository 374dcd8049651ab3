"""Hashes of files and settings, and what differs between two settings."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

PINNED = "#sha256:"  # between the URI of a model in a store and the hash of its files
_MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.model", "*.jinja")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return a hash of the names and contents of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def model_sha256(name: str | None) -> str | None:
    """Return a hub id unchanged; a folder as the hash of its configuration, vocabulary, weights and
    chat template.

    The URI of a model in a store that has its hash in it is that hash. An architecture with a file
    of weights, such as "ViT-B-32:clip.safetensors", is the architecture and the hash of the file.
    """
    if name is None:
        return None
    if Path(name).is_dir():
        return f"sha256:{_model_folder_sha256(Path(name))[:16]}"
    uri, mark, sha256 = name.partition(PINNED)
    if mark and "://" in uri:
        return f"sha256:{sha256}"
    architecture, _, weights = name.partition(":")
    if Path(weights).is_file():
        return f"{architecture}:sha256:{file_sha256(Path(weights))[:16]}"
    return name


def _model_folder_sha256(folder: Path) -> str:
    """Return a hash of the files that decide what a model computes."""
    files: set[Path] = set()
    for pattern in _MODEL_FILES:
        files.update(folder.glob(pattern))
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def json_sha256(values: object) -> str:
    """Return a hash of plain nested values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def fingerprint(identity: Mapping[str, object]) -> str:
    """Return a short hash of plain nested values, such as the identity of a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(
    before: Mapping[str, object],
    now: Mapping[str, object],
    absent: Mapping[str, object] | None = None,
) -> list[str]:
    """Return the settings in which two identities differ, one line each; `absent`: values of keys
    that one may lack.
    """
    old = {**(absent or {}), **dict(_flatten(before))}
    new = {**(absent or {}), **dict(_flatten(now))}
    lines: list[str] = []
    for key in sorted({*old, *new}, key=str):
        if old.get(key) != new.get(key):
            lines.append(f"{key}: {_text(old.get(key))} then, {_text(new.get(key))} now")
    return lines


def _text(value: object) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"content of SHA-256 {value[:8]}…"
    return repr(value)


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
