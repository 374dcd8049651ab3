"""Class names of the detection datasets, and the words by which captions call them.

The names are facts and ship in `sgpipe/sources/data`; so do the synonym tables, which are sgpipe's own. A synonym
table is `{class name: [phrases]}`. A phrase that starts with "!" says what the class is not: "!license plate"
under "plate" keeps license plates from being plates. Plurals and possessives are not listed; the matcher
knows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sgpipe.errors import UserError

Synonyms = Mapping[str, tuple[str, ...]]


def category_names(dataset: str) -> dict[int, str]:
    """Class name by category id, in the order of the ids.

    "coco" has the 80 names of COCO 2017 under ids 1 to 90; "objects365" the 365 names of Objects365 v2 with
    their spelling mended and in lower case, as RLIPv2 uses them; "open_images" the 601 names of Open Images V6
    that RLIPv2's annotations count from 0. Other datasets bring their names with their
    annotations: the answer is empty.
    """
    return {row["id"]: row["name"] for row in _packaged(f"{dataset}_names.json") or ()}


def official_names(dataset: str) -> dict[int, str]:
    """Class name by category id as the dataset's own annotation files spell it ("Moniter/TV")."""
    return {row["id"]: row.get("official", row["name"]) for row in _packaged(f"{dataset}_names.json") or ()}


def relation_names(dataset: str) -> dict[int, str]:
    """Relation name by the id that the dataset's annotation files use.

    "hico" has the 117 verbs of HICO-DET under 1 to 117, "vcoco" the 29 of V-COCO under 0 to 28 as RLIPv2 words
    them, "open_images" the 30 relations of Open Images V6 under 0 to 29; empty for any other dataset.
    """
    return {row["id"]: row["name"] for row in _packaged(f"{dataset}_relations.json") or ()}


def official_relation_names(dataset: str) -> dict[str, str]:
    """Our relation name by what the dataset's authors call it ("sit_instr" is "sit on/at")."""
    rows = _packaged(f"{dataset}_relations.json") or ()
    return {row.get("official", row["name"].replace(" ", "_")): row["name"] for row in rows}


def packaged_synonyms(dataset: str) -> Synonyms:
    """The synonym table that ships for "coco" or "objects365"; empty for any other dataset.

    It covers every class, with the name itself first, then what the class is called in every dataset, then
    what only this dataset's lack of finer classes lets it mean (a yacht is a "boat" in COCO).

    Parts of the body are nobody's synonym. In captions four of five of them are objects ("a cup in his hand",
    "a man has a beard on his face"), and what is said of the part is not true of the person's box.
    """
    common, own = (_packaged(f"{table}_synonyms.json") or {} for table in ("common", dataset))
    return {name: (name, *common.get(name, ()), *own.get(name, ())) for name in category_names(dataset).values()}


def load_synonyms(path: Path) -> Synonyms:
    """Read a synonym table `{class name: [phrases]}` from a JSON file.

    Raises:
        UserError: no such file, not JSON, or not such a table; the message names the file and the key, and
            says what was expected.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"synonyms file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"synonyms file {path} is not valid JSON ({error})") from None
    if not isinstance(table, dict) or not table:
        raise UserError(f"synonyms file {path}: expected {{class name: [phrases]}}, found {_found(table)}")
    return {name: _phrases(path, name, value) for name, value in table.items()}


def _phrases(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if not name.strip():
        raise UserError(f"synonyms file {path}: key {name!r}: expected a class name, found an empty one")
    if not isinstance(value, list) or not value:
        raise UserError(f"synonyms file {path}: key {name!r}: expected a list of phrases, found {_found(value)}")
    for phrase in value:
        if not isinstance(phrase, str) or not phrase.removeprefix("!").strip():
            raise UserError(f"synonyms file {path}: key {name!r}: expected phrases, found {_found(phrase)}")
    return tuple(value)


def _found(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'}{'' if value else ' that is empty'}"
    return repr(value)[:60]


@cache
def _packaged(file_name: str) -> Any:
    resource = files("sgpipe.sources") / "data" / file_name
    return json.loads(resource.read_text(encoding="utf-8")) if resource.is_file() else None
