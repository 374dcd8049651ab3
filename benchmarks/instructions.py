"""Instructions of the miniworld, checked against its ground truth.

python -m benchmarks.instructions

1,500 drawn images (seed 0), labelled by the packaged models with `tag.threshold=0`, and a
calibration from 500 others (seed 1). Every answer of `sgpipe export --to instructions --precision
0.9` is read from the text of question and answer and compared with the ground truth that the images
were drawn by. What reads them knows the templates and nothing else of sgpipe. Once with all
predicates of an image's captions for all its pairs, which gives more to deny; once by default.

The guesses see the text alone, as a model without eyes: the most frequent answer to a template, and
logistic models of words and pairs of words, without and with the numbers of coordinates, all fitted
to the questions about the 500 other images. Chance is one of the answers that the same question has
elsewhere, or one of its options; ± is the 95% interval of random guesses at that number of
questions.

Coordinates are text, too, and tell where boxes are. Naive Bayes on binned geometry and boosted
trees see the predicates and the differences, ratios, overlaps, shapes and places of the boxes in a
question (`blind_models`); they answer by cross-validation over images. "open": the predicate of two
boxes, of those that the same classes have elsewhere.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from rich.table import Table

from benchmarks.blind_models import NO_BOX, Box, BoxQuestion, Claim, answered
from benchmarks.measure import cost_of_sgpipe, report
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import shard_name, write_shard

TEMPLATES = Path(__file__).parent.parent / "sgpipe/export/instructions.yaml"
CANDIDATES = ("image", "captions")
IMAGES = (1500, 500)  # of seed 0 and of seed 1
PRECISION = 0.9
COPIES = (1, 4, 20)
BOX = r"\[\d+(?:, \d+){3}\]"
CLASS = "sports ball|dining table|[a-z]+"  # all classes of the miniworld
FIELDS = {
    "the_subject": rf"[Tt]he (?P<subject>{CLASS})(?: at (?P<subject_box>{BOX}))?",
    "the_object": rf"[Tt]he (?P<object>{CLASS})(?: at (?P<object_box>{BOX}))?",
    "a_subject": rf"an? (?P<subject>{CLASS})",
    "a_object": r"(?:an?|another) (?P<object>[a-z ]+)",
    "is": r"(?:[Ii]s)",
    "verb": r"(?P<predicate>[a-z ]+?)",
    "is_verb": r"is (?P<predicate>[a-z ]+?)",
    "one_verb": r"is (?P<predicate>[a-z ]+?)",
    "that_verb": r"(?P<predicate>[a-z ]+?)",
    "plural": r"(?P<plural>[A-Za-z ]+)",
    "options": r"(?P<options>(?:[A-E]\. .+\n?)+?)",
    "relations": r"(?P<relations>one|two|three|four) relations?",
}
NONE = "none of these"
PLURALS = {"people": "person", "benches": "bench"}
FORMS_OF_OPTIONS = {
    "choose_predicate": "predicate",
    "choose_object": "object",
    "choose_subject": "subject",
}


class World:
    """The ground truth of drawn images: classes and boxes (corners in pixels) of objects, and all
    relations.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, dict[int, tuple[str, str]]] = {}
        self.relations: dict[str, set[tuple[int, str, int]]] = {}
        for graph in json.loads((folder / "scene_graphs.json").read_text("utf-8")):
            image = str(graph["image_id"])
            self.objects[image] = {
                item["object_id"]: (
                    item["names"],
                    str(
                        [
                            round(v)
                            for v in (
                                item["x"],
                                item["y"],
                                item["x"] + item["w"],
                                item["y"] + item["h"],
                            )
                        ]
                    ),
                )
                for item in graph["objects"]
            }
            self.relations[image] = {
                (relationship["subject_id"], relationship["predicate"], relationship["object_id"])
                for relationship in graph["relationships"]
            }

    def holds(self, image: str, claim: Mapping[str, str]) -> bool:
        """Whether a relation of classes, and of boxes where they are given, is one of the image."""
        objects = self.objects[image]

        def fits(number: int, role: str) -> bool:
            name, box = objects[number]
            return name == claim[role] and claim.get(f"{role}_box", box) == box

        for role in ("subject", "object"):
            assert f"{role}_box" not in claim or any(fits(number, role) for number in objects), (
                image,
                claim,
            )
        return any(
            predicate == claim["predicate"] and fits(subject, "subject") and fits(object_, "object")
            for subject, predicate, object_ in self.relations[image]
        )

    def number(self, image: str, name: str) -> int:
        return sum(name == class_name for class_name, _ in self.objects[image].values())


class Checked(NamedTuple):
    """An item: whether its answer is right, whether each relation that it takes to be false is
    true, what the question shows besides coordinates, and its claims about relations of boxes, of
    options in their order.
    """

    item: Mapping[str, Any]
    right: bool
    denied: list[bool]
    shown: tuple[str, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def shows_boxes(self) -> bool:
        return any(claim.subject != NO_BOX for claim in self.claims)


def pattern(text: str) -> re.Pattern[str]:
    """What a text of a template matches; a field that occurs twice is matched once."""
    parts = re.split(r"\{(\w+)\}", text)
    expression = ""
    seen = set[str]()
    for number, part in enumerate(parts):
        if number % 2:
            group = FIELDS[part]
            for name in re.findall(r"\?P<(\w+)>", group):
                if name in seen:
                    group = group.replace(f"?P<{name}>", "?:")
                seen.add(name)
            expression += group
        else:
            expression += re.escape(part)
    return re.compile(expression + "$", re.IGNORECASE)


def singular(plural: str) -> str:
    return PLURALS.get(plural.lower(), plural.removesuffix("s"))


def check(
    world: World, templates: Mapping[str, Sequence[Mapping[str, str]]], item: Mapping[str, Any]
) -> Checked:
    form, number = item["template"].split("/")
    texts = templates[form][int(number) - 1]
    question, answer = (message["content"][-1]["text"] for message in item["messages"])
    images = item["image_ids"]
    assert [part["type"] for part in item["messages"][0]["content"]] == ["image"] * len(images) + [
        "text"
    ]
    assert len(item["images"]) == len(images)
    assert all(image in path for image, path in zip(images, item["images"], strict=True))
    match = pattern(texts["question"]).match(question)
    assert match, (texts["question"], question)
    stated_parts = {name: value for name, value in match.groupdict().items() if value is not None}
    named = tuple(
        value
        for name, value in sorted(stated_parts.items())
        if name in ("subject", "predicate", "object", "plural")
    )
    right = False
    denied = list[bool]()
    claims = tuple[Claim, ...]()
    if form in ("verification", "existence"):
        truth = world.holds(images[0], stated_parts)
        right = answer == texts["yes" if truth else "no"]
        denied = [truth] if answer == texts["no"] else []
        claims = (claim_of(stated_parts),) if form == "verification" else ()
    elif form in ("relation", "which_object", "which_subject"):
        full = pattern(texts["answer"]).match(answer)
        assert full, (texts["answer"], answer)
        for name, value in full.groupdict().items():
            assert stated_parts.setdefault(name, value) == value
        right = world.holds(images[0], stated_parts)
        claims = (claim_of(stated_parts),) if form == "relation" else ()
    elif form == "counting":
        right = world.number(images[0], singular(stated_parts["plural"])) == int(answer)
    elif form == "compare_count":
        first, second = (world.number(image, singular(stated_parts["plural"])) for image in images)
        right = first != second and answer == texts["first" if first > second else "second"]
    elif form == "compare_existence":
        first, second = (world.holds(image, stated_parts) for image in images)
        right = first != second and answer == texts["first" if first else "second"]
        denied = [second if answer == texts["first"] else first]
    elif form == "description":
        sentences = re.findall(r"The .+?\[[\d, ]+\].+?\[[\d, ]+\]\.", answer)
        assert len(sentences) == 1 + ("one", "two", "three", "four").index(
            stated_parts["relations"]
        )
        assert " ".join(sentences) == answer
        right = all(
            world.holds(images[0], found(texts["sentence"], sentence)) for sentence in sentences
        )
        named = ()
    else:
        options = [line[3:] for line in stated_parts["options"].strip().splitlines()]
        role = FORMS_OF_OPTIONS[form]
        stated = [stated_parts | as_option(role, option) for option in options if option != NONE]
        claims = tuple(map(claim_of, stated))
        true = [world.holds(images[0], claim) for claim in stated] + [False] * (NONE in options)
        place = "ABCDE".index(answer[0])
        assert answer in (answer[0], f"{answer[0]}. {options[place]}")
        if options[place] == NONE:
            right = not any(true)
            denied = true[:-1]
        else:
            denied = [
                is_true for at, is_true in enumerate(true) if at != place and options[at] != NONE
            ]
            right = true[place] and not any(denied)
        named = (*named, str(len(options)))
    return Checked(item, right, denied, (form, *named), claims)


def claim_of(parts: Mapping[str, str]) -> Claim:
    return Claim(
        parts["predicate"], box_of(parts.get("subject_box")), box_of(parts.get("object_box"))
    )


def box_of(text: str | None) -> Box:
    return tuple(map(int, re.findall(r"\d+", text))) if text else NO_BOX


def found(text: str, sentence: str) -> dict[str, str]:
    match = pattern(text).match(sentence)
    assert match, (text, sentence)
    return match.groupdict()


def as_option(role: str, option: str) -> dict[str, str]:
    if role == "predicate":
        return {"predicate": option.removeprefix("is ")}
    match = re.match(rf"the ([a-z ]+) at ({BOX})$", option)
    assert match, option
    return {role: match[1], f"{role}_box": match[2]}


def guesses(train: Sequence[Checked], test: Sequence[Checked]) -> list[list[bool]]:
    """Whether the most frequent answer to a template is right, and those of logistic models of
    words: without and with the numbers of coordinates."""
    answers = sorted({answer.item["answer"] for answer in train})
    target = np.array([answers.index(answer.item["answer"]) for answer in train])
    counts_of_answers = defaultdict[str, Counter[str]](Counter)
    for answer in train:
        counts_of_answers[answer.item["template"]][answer.item["answer"]] += 1
    common = [counts_of_answers[answer.item["template"]].most_common(1)[:1] for answer in test]
    guessed = [
        [
            bool(best) and best[0][0] == answer.item["answer"]
            for best, answer in zip(common, test, strict=True)
        ]
    ]
    for numbers in ("", r"|\d+"):
        predicted = _logistic(
            *([_words(answer.item, numbers) for answer in part] for part in (train, test)), target
        )
        guessed.append(
            [
                answers[at] == answer.item["answer"]
                for at, answer in zip(predicted, test, strict=True)
            ]
        )
    return guessed


def _words(item: Mapping[str, Any], numbers: str) -> set[str]:
    tokens = re.findall(
        rf"[a-z]+|[A-E](?=\. ){numbers}", item["messages"][0]["content"][-1]["text"]
    )
    pairs = (" ".join(pair) for pair in pairwise(tokens))
    return {item["template"], *tokens, *pairs, *(f"{item['template']} {token}" for token in tokens)}


def _logistic(train: Sequence[set[str]], test: Sequence[set[str]], target: Any) -> Any:
    seen = Counter(word for words in train for word in words)
    columns = {
        word: at for at, word in enumerate(word for word, number in seen.items() if number > 1)
    }
    torch.manual_seed(0)

    def matrix(rows: Sequence[set[str]]) -> torch.Tensor:
        dense = torch.zeros(len(rows), len(columns))
        for at, words in enumerate(rows):
            dense[at, [columns[word] for word in words if word in columns]] = 1
        return dense

    inputs = matrix(train)
    classes = torch.tensor(target)
    model = torch.nn.Linear(len(columns), int(classes.max()) + 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), classes).backward()
        optimiser.step()
    with torch.no_grad():
        return model(matrix(test)).argmax(1).numpy()


def box_questions(checked: Sequence[Checked]) -> list[BoxQuestion]:
    """Return the questions with options about relations of boxes; an open one has the predicates of
    its classes.
    """
    predicates = defaultdict[tuple[str, ...], set[str]](set)
    for question in checked:
        if question.shown[0] == "relation":
            predicates[classes_of(question)].add(question.item["answer"])
    questions = []
    for question in checked:
        form = question.shown[0]
        claims = question.claims
        kind = question.item["kind"]
        answer = question.item["answer"]
        if form == "relation":
            (claim,) = claims
            claims = tuple(
                claim._replace(predicate=predicate)
                for predicate in sorted(predicates[classes_of(question)])
            )
            kind = "relation, open"
            right = [claim.predicate for claim in claims].index(answer)
        elif form == "verification":
            kind = "relation, yes or no"
            right = 0 if answer == "yes" else 1
        elif form.startswith("choose"):
            right = "ABCDE".index(answer)
        else:
            continue
        has_none = kind in ("relation, yes or no", "none_of_these")
        kind += ", with boxes" if question.shows_boxes else ", without boxes"
        questions.append(BoxQuestion(question.item["image_ids"][0], kind, claims, right, has_none))
    return questions


def classes_of(checked: Checked) -> tuple[str, ...]:
    """Return the classes of an open question, whose answer names the predicate."""
    objects = re.findall(
        rf"[Tt]he ({CLASS}) at \[", checked.item["messages"][0]["content"][-1]["text"]
    )
    return tuple(objects)


def chances(checked: Sequence[Checked]) -> list[float]:
    """One of the answers that the same question has; one of the options."""
    answers = defaultdict[tuple[str, ...], set[str]](set)
    for question in checked:
        answers[question.shown].add(question.item["answer"])
    return [
        (
            1 / int(question.shown[-1])
            if question.shown[0].startswith("choose")
            else 1 / len(answers[question.shown])
            if not question.shown[0].startswith("compare")
            else 1 / 2
        )
        for question in checked
    ]


def sgpipe(*arguments: object) -> None:
    command = [
        sys.executable,
        "-c",
        "from sgpipe.cli.main import main; main()",
        *map(str, arguments),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the runs there, and use those that are")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    templates = yaml.safe_load(TEMPLATES.read_text("utf-8"))["templates"]
    parts = list[Table | str]()
    for candidates in arguments.candidates:
        runs = [folder / f"{candidates}{seed}" for seed in (0, 1)]
        for seed, run in enumerate(runs):
            settings = {
                "source.miniworld.images": IMAGES[seed],
                "source.miniworld.seed": seed,
                "tag.threshold": 0,
            }
            settings |= {"pair.candidates": candidates}
            sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
            sgpipe("generate", "miniworld", *sets, "--out", run)
        calibration = folder / f"calibration-{candidates}.json"
        if not calibration.exists():
            sgpipe("calibrate", runs[1], "--out", calibration)
        options = ("--to", "instructions", "--calibration", calibration, "--precision", PRECISION)
        checked = []
        for run in runs:
            out = Path(tempfile.mkdtemp(dir=folder)) / "out"
            sgpipe("export", run, *options, "--out", out)
            world = World(run / ".sgpipe/drawn/world")
            lines = (out / "val.jsonl").read_text("utf-8").splitlines()
            checked.append([check(world, templates, json.loads(line)) for line in lines])
        parts += [f"## Candidates: `pair.candidates={candidates}`", *tables(*checked)]
    speed = Table("images", "questions", "CPU seconds", "peak MB")
    for copies in COPIES:
        out = folder / f"copies-{copies}"
        repeat(runs[0], out, copies)
        _, seconds, peak = cost_of_sgpipe(
            "export", str(out), *map(str, options), "--out", str(out / "exported")
        )
        with (out / "exported/val.jsonl").open("rb") as lines:
            speed.add_row(f"{copies * IMAGES[0]:,}", f"{sum(1 for _ in lines):,}", seconds, peak)
        shutil.rmtree(out)
    title = f"One process, with its start, of candidates by `{arguments.candidates[-1]}`:"
    report(str(__doc__), *parts, title, speed)


def repeat(run: Path, out: Path, copies: int) -> None:
    """Write a run with each image of another one several times."""
    out.mkdir()
    header = Manifest.load(run).run
    manifest = Manifest.create(
        out, header | {"images": {"val": str((run / ".sgpipe/drawn/world/images").resolve())}}
    )
    records = list(iter_records(run))
    for start in range(0, copies * len(records), len(records)):
        part = [replace(record, image_id=f"{start}-{record.image_id}") for record in records]
        name = shard_name("val", start, start + len(part))
        manifest.commit(write_shard(out, name, "val", start, part, {}))


def tables(checked: Sequence[Checked], training: Sequence[Checked]) -> Iterator[Table | str]:
    answers = Table(
        "kind", "questions", "right", "mean probability", "taken to be false", "of these true"
    )
    texts = Table(
        "kind", "questions", "chance", "most frequent answer", "words", "words and coordinates"
    )
    text_only = [question for question in checked if question.item["kind"] != "description"]
    guessed = guesses(
        [other for other in training if other.item["kind"] != "description"], text_only
    )
    chance = chances(text_only)
    for kind in [*sorted({question.item["kind"] for question in checked}), "all"]:
        of_kind = [question for question in checked if kind in ("all", question.item["kind"])]
        denied = [is_true for question in of_kind for is_true in question.denied]
        right = np.mean([question.right for question in of_kind])
        probability = np.mean([question.item["probability"] for question in of_kind])
        share = f"{np.mean(denied):.1%}" if denied else ""
        answers.add_row(
            kind,
            f"{len(of_kind):,}",
            f"{right:.1%}",
            f"{probability:.1%}",
            f"{len(denied) or ''}",
            share,
        )
        at = [
            number
            for number, question in enumerate(text_only)
            if kind in ("all", question.item["kind"])
        ]
        if at:
            first, *rates = (
                np.mean([values[number] for number in at]) for values in (chance, *guessed)
            )
            spread = (
                1.96
                * np.mean([chance[number] * (1 - chance[number]) for number in at]) ** 0.5
                / len(at) ** 0.5
            )
            texts.add_row(
                kind,
                f"{len(at):,}",
                f"{first:.1%} ± {spread:.1%}",
                *(f"{rate:.1%}" for rate in rates),
            )
    yield answers
    yield texts
    yield coordinates_table(checked)


def coordinates_table(checked: Sequence[Checked]) -> Table:
    """How often models of boxes and predicates are right, by kind, with and without boxes in the
    text.
    """
    table = Table("kind", "questions", "chance", "naive Bayes", "boosting")
    questions = box_questions(checked)
    rates = answered(questions)
    chance = np.array([1 / (len(question.claims) + question.has_none) for question in questions])
    kinds = np.array([question.kind for question in questions])
    for kind in np.unique(kinds):
        rows = kinds == kind
        shares = [f"{right[rows].mean():.1%}" for right in rates.values()]
        table.add_row(kind, f"{rows.sum():,}", f"{chance[rows].mean():.1%}", *shares)
    return table


if __name__ == "__main__":
    main()
