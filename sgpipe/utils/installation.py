"""Which sgpipe is installed: the machines that work on one run need the same."""

from __future__ import annotations

import hashlib
import platform
import socket
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sgpipe.utils import __version__
from sgpipe.utils.hashing import file_sha256

_LIBRARIES = ("torch", "transformers", "pillow", "spacy")  # other versions of them can give other labels
_ADVICE = "install the same sgpipe, from the same files, on all machines"


@dataclass(frozen=True)
class Installation:
    """What a process runs.

    Attributes:
        code: a hash of all Python files of sgpipe, with them the schema of records, and of the network.
        libraries: versions by name; libraries that are not installed are left out.
    """

    machine: str
    version: str
    code: str
    python: str
    libraries: dict[str, str]

    def misfit(self, worker: Installation) -> str | None:
        """Why a worker cannot work for this process; None: it can."""
        if worker.code != self.code:
            there, here = (f"{each.version} ({each.code})" for each in (worker, self))
            return f"machine {worker.machine} has sgpipe {there}, this one {here}: {_ADVICE}"
        if worker.python != self.python:
            return f"machine {worker.machine} has Python {worker.python}, this one {self.python}: use the same on all"
        return None

    def other_libraries(self, worker: Installation) -> str | None:
        """The libraries of a worker that have another version than here; None: there are none."""
        names = sorted({*self.libraries, *worker.libraries})
        pairs = [(name, worker.libraries.get(name, "none"), self.libraries.get(name, "none")) for name in names]
        listed = ", ".join(f"{name} {there} (here {here})" for name, there, here in pairs if there != here)
        return f"machine {worker.machine} has {listed}: its labels may differ slightly" if listed else None


def installation() -> Installation:
    """What this process runs."""
    python = ".".join(platform.python_version_tuple()[:2])
    return Installation(socket.gethostname(), __version__, code_fingerprint(), python, dict(_versions()))


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """A short hash of the Python files of both packages."""
    digest = hashlib.sha256()
    parent = Path(__file__).parents[2]
    for package in ("sgpipe", "rlip_model"):
        for path in sorted((parent / package).rglob("*.py")):
            digest.update(f"{path.relative_to(parent).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()[:12]


def missing_there(machine: str, reason: str) -> str:
    """What is said of a machine whose sgpipe does not answer."""
    return f"machine {machine} has no sgpipe, or an earlier one ({reason}): {_ADVICE}"


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
