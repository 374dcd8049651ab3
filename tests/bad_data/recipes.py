"""Bad recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgpipe.recipe import load_recipe
from tests.bad_data.case import Case, Outcome


def process(folder: Path, made: Any) -> Outcome:
    recipe = load_recipe(str(folder / "r.yaml"))
    return Outcome("accepted", f"{recipe.name} seed {recipe.seed} threshold {recipe.tag.threshold}")


def holds(content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "r.yaml").write_bytes(data)


def aliases(levels: int) -> str:
    """YAML aliases that expand to 10^levels values."""
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1))]
    return "\n".join(lines) + "\n"


_ROWS: tuple[tuple[Any, ...], ...] = (
    ("a missing file", lambda folder: None, "refused"),
    ("an empty file: the defaults", holds(""), "accepted", "sgpipe seed 0 threshold 0.05"),
    ("a list", holds("- a\n- b"), "refused"),
    ("not YAML", holds("tag: [1"), "refused"),
    ("a Python call", holds("name: !!python/object/apply:os.system ['true']"), "refused"),
    ("a misspelled key", holds("tag: {treshold: 0.1}"), "refused"),
    ("a duplicate key", holds("seed: 1\nname: a\nseed: 2"), "refused"),
    ("a word instead of a number", holds("seed: many"), "refused"),
    ("a number as text", holds("seed: '7'"), "accepted", "seed 7"),
    ("NaN", holds("tag: {threshold: .nan}"), "refused"),
    ("no actors", holds("tag: {resources: {actors: 0}}"), "refused"),
    ("a split name that is a path", holds("source: {splits: {../x: {annotations: a, images: b}}}"), "refused"),
    ("a name that is a path", holds("name: ../../x"), "refused"),
    ("a million values in six lines", holds(aliases(6) + "name: *a6"), "refused"),
    ("5,000 levels of nesting", holds("{a: " * 5000 + "1" + "}" * 5000), "refused"),
)  # fmt: skip

CASES = [Case("recipe", what, make, process, kind, *pattern) for what, make, kind, *pattern in _ROWS]
