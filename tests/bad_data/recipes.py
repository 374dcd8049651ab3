"""Bad recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sgpipe.recipe import load_recipe
from tests.bad_data.case import Case, Kind, Outcome


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


_ROWS: tuple[tuple[str, Callable[[Path], object], Kind, str], ...] = (
    ("a missing file", lambda folder: None, "refused", "no such file: "),
    ("an empty file: the defaults", holds(""), "accepted", "sgpipe seed 0 threshold 0.05"),
    ("a list", holds("- a\n- b"), "refused", "expected keys and values, found list"),
    ("not YAML", holds("tag: [1"), "refused", "line 1: not valid YAML|not valid YAML"),
    ("tabs", holds("tag:\n\tthreshold: 1"), "refused", "line 2: not valid YAML"),
    ("an image", holds(b"\x89PNG\r\n\x1a\n\xff\xff"), "refused", "not valid YAML"),
    ("a Python call", holds("name: !!python/object/apply:os.system ['true']"), "refused", "not valid YAML"),
    ("a misspelled key", holds("tag: {treshold: 0.1}"), "refused", "did you mean 'tag.threshold'"),
    ("a duplicate key", holds("seed: 1\nname: a\nseed: 2"), "refused", "line 3: key 'seed' occurs twice"),
    ("a duplicate key in a section", holds("tag: {threshold: 0.1, threshold: 0.2}"), "refused", "'threshold' occurs"),
    ("a list as key", holds("? [a]\n: 1"), "refused", "not valid YAML"),
    ("a word instead of a number", holds("seed: many"), "refused", "key 'seed': expected a valid integer"),
    ("a fraction instead of an integer", holds("seed: 1.5"), "refused", "key 'seed': expected a valid integer"),
    ("a number as text", holds("seed: '7'"), "accepted", "seed 7"),
    ("NaN", holds("tag: {threshold: .nan}"), "refused", "key 'tag.threshold': expected a finite number"),
    ("a threshold below 0", holds("tag: {threshold: -0.1}"), "refused", "expected a number greater than or equal to 0"),
    ("an infinite temperature", holds("caption: {temperature: .inf}"), "refused", "key 'caption.temperature'"),
    ("no actors", holds("tag: {resources: {actors: 0}}"), "refused", "key 'tag.resources.actors'"),
    ("null instead of a number", holds("seed: null"), "refused", "key 'seed'"),
    ("a list instead of a section", holds("tag: [1]"), "refused", "key 'tag'"),
    ("a split name that is a path", holds("source: {splits: {../x: {annotations: a, images: b}}}"), "refused",
     "source.splits"),
    ("a name that is a path", holds("name: ../../x"), "refused", "key 'name'"),
    ("a million values in six lines", holds(aliases(6) + "name: *a6"), "refused", "key 'name': expected a valid"),
    ("5,000 levels of nesting", holds("{a: " * 5000 + "1" + "}" * 5000), "refused", "nested too deeply"),
)  # fmt: skip

CASES = [Case("recipe", what, make, process, kind, pattern) for what, make, kind, pattern in _ROWS]
