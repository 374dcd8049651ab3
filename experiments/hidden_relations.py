"""Relations that are hidden and found again: `python -m experiments.hidden_relations FOLDER`.

Half of the relations of miniworld images, whose ground truth is exact, are hidden, and `generate
--extend` completes the rest. A relation and what says the same ("A next to B", "B next to A") are
hidden together: while one is known, the other is not missing. Writes benchmarks/results/extend.md.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from experiments.command import run_command
from experiments.miniworld.cards import markdown_table
from sgpipe.generation.run import generate
from sgpipe.miniworld.dataset import IMAGES, SCENE_GRAPHS, render_dataset
from sgpipe.miniworld.scene import NOUNS
from sgpipe.recipe import load_recipe
from sgpipe.records import Record, Relation
from sgpipe.sources.miniworld import import_graphs
from sgpipe.sources.vocabulary import load_equivalents
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import Progress, progress

PAGE = Path(__file__).parents[1] / "benchmarks" / "results" / "extend.md"
COUNT = 500
NAMES = 500
SEED = 33
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RECALL = 0.7
PRECISION = 0.9
EQUIVALENTS = load_equivalents(None)
Graph = dict[str, Any]
Key = tuple[Any, ...]

_ADJECTIVES = (
    *(
        "small",
        "large",
        "old",
        "young",
        "red",
        "blue",
        "green",
        "white",
        "black",
        "brown",
        "tall",
        "little",
        "big",
    ),
    *("tiny", "dark", "light", "grey", "orange", "pretty", "dirty"),
)


def free_names() -> Mapping[str, list[str]]:
    """Return `NAMES` names by class, as people write them: the nouns of captions, alone and with an
    adjective.
    """
    people = [noun for kind in ("man", "woman", "boy", "girl") for noun in NOUNS[kind]]
    classes = load_recipe("miniworld").detect.classes or ()
    nouns = {
        class_name: list(
            dict.fromkeys(
                people if class_name == "person" else NOUNS.get(class_name, (class_name,))
            )
        )
        for class_name in classes
    }
    names = {each: list(noun) for each, noun in nouns.items()}
    described = [
        (each, f"{word} {noun}")
        for word, each in product(_ADJECTIVES, classes)
        for noun in nouns[each]
    ]
    for each, name in described[: NAMES - sum(map(len, names.values()))]:
        names[each].append(name)
    return names


def half_of(graphs: list[Graph], rng: random.Random) -> list[Graph]:
    """Return the graphs with half of what they say."""
    halves = []
    for graph in graphs:
        relations_of_pair: dict[Key, list[Graph]] = {}
        for relationship in graph["relationships"]:
            key = EQUIVALENTS.key(
                relationship["subject_id"], relationship["predicate"], relationship["object_id"]
            )
            relations_of_pair.setdefault(key, []).append(relationship)
        known = [
            relation
            for relations in relations_of_pair.values()
            if rng.random() < 0.5
            for relation in relations
        ]
        halves.append({**graph, "relationships": known})
    return halves


class Found(NamedTuple):
    """What an extended run has: `hidden` and `true` keys, and the confidence and key of what was
    added.
    """

    images: int
    known: int
    hidden: set[Key]
    true: set[Key]
    added: list[tuple[float, Key]]

    def at(self, threshold: float) -> tuple[int, float, float]:
        """Return how many of the added relations reach a confidence, their precision, and the
        recall of the hidden.
        """
        keys = [key for confidence, key in self.added if confidence >= threshold]
        precision = sum(key in self.true for key in keys) / max(len(keys), 1)
        return len(keys), precision, len(self.hidden.intersection(keys)) / len(self.hidden)


def compare(truth: Path, half: Path, extended: Path) -> Found:
    """Compare an extended run with the ground truth. Raises AssertionError: a known one changed or
    is said again.
    """

    def key(record: Record, relation: Relation) -> Key:
        return (
            record.image_id,
            *EQUIVALENTS.key(relation.subject, relation.predicate, relation.object),
        )

    true = set[Key]()
    known = set[Key]()
    added = list[tuple[float, Key]]()
    images = 0
    relations = 0
    for full, before, after in zip(*map(iter_records, (truth, half, extended)), strict=True):
        new = after.relations[len(before.relations) :]
        assert after.relations[: len(before.relations)] == before.relations, after.image_id
        assert after.objects == before.objects, after.image_id
        known_keys = {key(before, relation) for relation in before.relations}
        assert not known_keys.intersection(key(after, proposed) for proposed in new), after.image_id
        assert all(
            proposed.confidence is not None and proposed.origin == "tagger" for proposed in new
        ), after.image_id
        true |= {key(full, relation) for relation in full.relations}
        known |= known_keys
        added += [(proposed.confidence or 0, key(after, proposed)) for proposed in new]
        relations += len(before.relations)
        images += 1
    return Found(images, relations, true - known, true, added)


def measure(folder: Path, name: str, graphs: list[Graph], settings: Mapping[str, Any]) -> Found:
    """Hide half of the graphs, extend the rest with the packaged models, and compare."""
    images = folder / "drawn" / IMAGES
    place = folder / name
    place.mkdir(exist_ok=True)
    for part, content in (("truth", graphs), ("half", half_of(graphs, random.Random(SEED)))):
        write_text(place / f"{part}.json", json.dumps(content))
        import_graphs(place / f"{part}.json", "val", place / part, images)
    source = {"source.format": "run", "source.run": str(place / "half"), "engine.cpus": 1}
    generate(load_recipe("miniworld", {**source, **settings}), place / "out", Progress(progress()))
    return compare(place / "truth", place / "half", place / "out")


def section(title: str, result: Found) -> str:
    """Return the part of the page on one run."""
    levels = [(threshold, *result.at(threshold)) for threshold in THRESHOLDS]
    table = markdown_table(
        [["confidence ≥", "added", "precision", "hidden ones found"]]
        + [
            [f"{at:g}", f"{number:,}", f"{right:.1%}", f"{share:.1%}"]
            for at, number, right, share in levels
        ]
    )
    reached = [at for at, _, right, share in levels if right >= PRECISION and share >= RECALL]
    found_at = (
        f"at confidence {', '.join(f'{at:g}' for at in reached)}"
        if reached
        else "at none of these confidences"
    )
    return (
        f"## {title}\n\n{result.images:,} images: {result.known:,} known relations, all kept bit for"
        f" bit; {len(result.hidden):,} hidden. Nothing known was proposed again under another"
        f" name.\n\n{table}\n\nRecall of at least {RECALL:.0%} at a precision of at least"
        f" {PRECISION:.0%}: {found_at}.\n"
    )


def main(
    folder: Annotated[
        Path, typer.Argument(help="Folder for images and runs; what is there is resumed.")
    ],
    count: Annotated[int, typer.Option(help="Images.")] = COUNT,
) -> None:
    """Hide half of the relations of the miniworld, extend the rest, and count what is found
    again.
    """
    began = time.process_time()
    render_dataset(folder / "drawn", count, SEED, "val")
    graphs: list[Graph] = json.loads((folder / "drawn" / SCENE_GRAPHS).read_text(encoding="utf-8"))
    rng = random.Random(SEED)
    names = free_names()
    renamed = [
        {**g, "objects": [{**o, "names": rng.choice(names[o["names"]])} for o in g["objects"]]}
        for g in graphs
    ]
    used = {thing["names"] for graph in renamed for thing in graph["objects"]}
    few = {"tag.vocabulary": "image"}
    sections = [
        section("Classes of the miniworld", measure(folder, "classes", graphs, {})),
        section("The same without the run's own predicates (`pair.known=0`): what captions say",
                measure(folder, "captions", graphs, {"pair.known": 0})),
        section(f"Free names: {sum(map(len, names.values()))} nouns, {len(used)} of them used, `tag.vocabulary=image`",
                measure(folder, "names", renamed, few)),
    ]  # fmt: skip
    write_text(
        PAGE,
        f"# Hidden relations\n\n`python -m experiments.hidden_relations FOLDER` (seed {SEED}) hides"
        " half of what is true in images of the miniworld's val split and\nextends the rest with"
        " the packaged captioner and tagger, by the given boxes. Precision: share of the added"
        " relations that\nare true. A relation counts as found if the run says the same, also from"
        ' the other end ("A behind B", "B in front of A").\n\n' + "\n".join(sections),
    )
    typer.echo(f"wrote {PAGE} ({time.process_time() - began:.0f} CPU-seconds in this process)")


if __name__ == "__main__":
    run_command(main)
