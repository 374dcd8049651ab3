"""The commands of sgpipe, and the fenced blocks of README.md and docs/ with what each of them
needs.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from sgpipe.cli.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A block of shell commands or Python; `needs`: what is not there when tests run, or None."""

    document: str
    line: int
    language: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Every call of sgpipe in it, as words; of alternatives ("a|b") the first."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\|\s|&&", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["sgpipe"]:
                    yield [word.partition("|")[0] for word in words[1:]]


def commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    """All commands by their words, groups such as "import" among them."""
    subcommands = {}
    for name, command in (group or typer.main.get_command(app)).commands.items():
        subcommands |= {
            f"{prefix}{name}": command,
            **(commands(command, f"{name} ") if hasattr(command, "commands") else {}),
        }
    return subcommands


def blocks() -> list[Block]:
    return [block for path in DOCUMENTS for block in _blocks(path)]


def _blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        if match["language"] in ("sh", "python"):
            line = text[: match.start("language")].count("\n") + 1
            name = str(path.relative_to(ROOT))
            yield Block(name, line, match["language"], match["text"], match["needs"])


def docs_hook(name: str) -> ModuleType:
    """A module of docs/hooks, which makes pages of the site from the code."""
    folder = str(ROOT / "docs" / "hooks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
