"""Class names of the detection datasets, and the synonyms that captions use for them.

The names and sgpipe's own synonym tables ship in `sgpipe/sources/data`. A synonym table is `{class name: [phrases]}`. A
phrase that starts with "!" is excluded from the class: "!license plate" under "plate" keeps license plates from being
matched as plates. Plurals and possessives are not listed: the matcher derives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.files.text_files import read_text
from sgpipe.utils.config_file import parse_yaml

Synonyms = Mapping[str, tuple[str, ...]]


def category_names(dataset: str) -> dict[int, str]:
    """Return the class names by category id, in the order of the ids.

    "coco" has the 80 names of COCO 2017 with ids 1 to 90; "objects365" the 365 names of Objects365 v2 in lower case
    and with corrected spelling, as RLIPv2 uses them; "open_images" the 601 names of Open Images V6 with ids from 0, as
    in RLIPv2's annotations. The result is empty for any other dataset: its annotation file contains its names.
    """
    return {row["id"]: row["name"] for row in _packaged(f"{dataset}_names.json") or ()}


def official_names(dataset: str) -> dict[int, str]:
    """Return the class names by category id, in the spelling of the dataset's annotation files ("Moniter/TV")."""
    return {row["id"]: row.get("official", row["name"]) for row in _packaged(f"{dataset}_names.json") or ()}


def relation_names(dataset: str) -> dict[int, str]:
    """Return the relation names by the id in the dataset's annotation files.

    "hico" has the 117 verbs of HICO-DET with ids 1 to 117, "vcoco" the 29 verbs of V-COCO with ids 0 to 28 in RLIPv2's
    wording, "open_images" the 30 relations of Open Images V6 with ids 0 to 29. Empty for any other dataset.
    """
    return {row["id"]: row["name"] for row in _packaged(f"{dataset}_relations.json") or ()}


def official_relation_names(dataset: str) -> dict[str, str]:
    """sgpipe's relation name by the official one ("sit_instr" is "sit on/at")."""
    rows = _packaged(f"{dataset}_relations.json") or ()
    return {row.get("official", row["name"].replace(" ", "_")): row["name"] for row in rows}


def packaged_synonyms(dataset: str) -> Synonyms:
    """Return the synonym table that ships for "coco" or "objects365"; empty for any other dataset.

    It covers every class: first the name itself, then synonyms that hold in every dataset, then those that hold only
    because this dataset has no finer class (a yacht is a "boat" in COCO).

    Body parts are not synonyms of a person. In captions, four of five mentions are objects ("a cup in his hand", "a man
    has a beard on his face"), and the relation of the part does not hold for the person's box.
    """
    common, own = (_packaged(f"{table}_synonyms.json") or {} for table in ("common", dataset))
    return {name: (name, *common.get(name, ()), *own.get(name, ())) for name in category_names(dataset).values()}


def loose_words() -> dict[str, tuple[str, ...]]:
    """Return words that may stand for a thing of some class although they do not name it, and the classes, best first.

    "beer" may be a bottle, a cup or a wine glass, and "food" whatever food has a box. The classes are COCO's and those
    of Objects365.
    """
    return {word: tuple(classes) for words, classes in _packaged("loose_words.json")["called"] for word in words}


@cache
def implied_things() -> tuple[re.Pattern[str], list[tuple[str, tuple[str, ...]]]]:
    """Return a pattern of words that imply a thing, and for each of its groups the predicate and the thing's classes.

    A "skier" is a person skiing on skis. Words are in lower case with single spaces.
    """
    rows = _packaged("loose_words.json")["implied"]
    pattern = "|".join(f"({words})" for words, _, _ in rows)
    return re.compile(rf"\b(?:{pattern})\b"), [(predicate, tuple(classes)) for _, predicate, classes in rows]


def load_synonyms(path: Location) -> Synonyms:
    """Read a synonym table `{class name: [phrases]}` from a YAML or JSON file.

    Raises UserError: the file is missing or is not such a table.
    """
    table = check_table(read_table(path, "synonyms file"), f"synonyms file {path}", "class name: [phrases]", fewest=1)
    return {name: tuple(phrases) for name, phrases in table.items()}


def read_table(path: Location, what: str) -> Any:
    """Return the content of a YAML or JSON file, which messages call `what`. Raises UserError."""
    text = read_text(path, what)
    try:
        with suppress(ValueError):  # YAML forbids tabs, and reads "\\ud83d\\ude00" as two characters
            return json.loads(text, object_pairs_hook=_unique)
        return parse_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} {path} is neither YAML nor JSON ({reason})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("duplicate key")  # the YAML parser says which one
    return values


def check_table(table: Any, place: str, form: str, fewest: int = 0) -> Mapping[str, list[str]]:
    """Return a table of names and lists of `fewest` texts or more.

    Raises UserError: it is not in this `form`, or a text is blank.
    """
    if not isinstance(table, dict) or not table:
        raise UserError(f"{place}: expected {{{form}}}")
    for name, texts in table.items():
        words = texts if isinstance(texts, list) else [None]
        if len(words) < fewest or not all(
            isinstance(each, str) and each.removeprefix("!").strip() for each in (name, *words)
        ):
            raise UserError(f"{place}: key {name!r}: expected {form}, found {json.dumps(texts, default=str)[:60]}")
    return table


@cache
def _packaged(file_name: str) -> Any:
    resource = files("sgpipe.sources") / "data" / file_name
    return json.loads(resource.read_text(encoding="utf-8")) if resource.is_file() else None
