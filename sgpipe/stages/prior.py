"""Which predicates relate which classes in Visual Genome: candidates for images without captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from sgpipe.errors import UserError
from sgpipe.sources.json_stream import JsonStream
from sgpipe.stages.matching import Matcher, normalise_predicate

Prior: TypeAlias = dict[tuple[str, str], list[str]]


def read_prior(path: Path, matcher: Matcher, *, verbatim: bool = False) -> Prior:
    """Collect the prior from a Visual Genome JSON file, one image at a time.

    Any of VG's layouts will do: `scene_graphs.json` and RLIP's preprocessed files (objects, and relationships
    with `subject_id` and `object_id`), or `relationships.json` (subject and object within the relationship).

    Raises:
        UserError: the file cannot be read, is not JSON or not of this form, or relates none of the classes.
    """
    try:
        prior = collect_prior((item for _, item in JsonStream(path)), matcher, verbatim=verbatim)
    except ValueError as error:
        raise UserError(f"prior {path} is not a Visual Genome scene graph file: {error}") from None
    if not prior:
        raise UserError(f"prior {path}: none of its relationships is between classes of the dataset")
    return prior


def collect_prior(graphs: Iterable[Any], matcher: Matcher, *, verbatim: bool = False) -> Prior:
    """For each (subject class, object class) the distinct predicates of the graphs, in order of appearance.

    A name may fit several classes; its relationships then count for each of them. Predicates are put in
    lower case with single spaces, and empty ones left out, unless `verbatim`.

    Raises:
        ValueError: a graph is not of VG's form; the message says which and why.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for graph in graphs:
        for subject, predicate, object_ in _relationships(graph):
            text = predicate if verbatim else normalise_predicate(predicate)
            if not text and not verbatim:
                continue
            for pair in product(matcher.classes(subject), matcher.classes(object_)):
                found.setdefault(pair, {})[text] = None
    return {pair: list(texts) for pair, texts in found.items()}


def _relationships(graph: Any) -> list[tuple[str, str, str]]:
    """(subject name, predicate, object name) of every relationship of an image."""
    if not isinstance(graph, dict) or not isinstance(graph.get("relationships"), list):
        raise ValueError("expected images with relationships")
    try:
        names = {item["object_id"]: _name(item) for item in graph.get("objects", ())}
        return [
            (_end(relation, "subject", names), str(relation["predicate"]), _end(relation, "object", names))
            for relation in graph["relationships"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"image {graph.get('image_id')!r} has a malformed relationship ({error})") from None


def _end(relation: Mapping[str, Any], role: str, names: Mapping[Any, str]) -> str:
    """The name of a relationship's subject or object, which is inside it or among the image's objects."""
    return _name(relation[role]) if role in relation else names[relation[f"{role}_id"]]


def _name(item: Mapping[str, Any]) -> str:
    """VG gives an object a `name`, or `names`: a list, or in RLIP's preprocessed files one string."""
    value = item["names"] if "names" in item else item["name"]
    return str(value if isinstance(value, str) else next(iter(value), ""))
