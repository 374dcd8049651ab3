"""Questions and answers: right as often as promised, balanced, English, and safe in chat
templates.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.instructions import BOX, TEMPLATES, Checked, World, check
from sgpipe.calibration import Calibration, scoring_of_run
from sgpipe.cli.main import app
from sgpipe.export.instructions import Instructions
from sgpipe.export.question_items import Stratum
from sgpipe.export.question_quotas import quotas
from sgpipe.export.question_text import English, filled, load_phrases, plain_name
from sgpipe.export.rows import ExportRows
from sgpipe.export.run import export_run
from sgpipe.records import Box, Pair, Record, Relation
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.runs import draw_images
from tests.sgpipe.stats.runs import DOG, PERSON, make_shards, scene
from tests.values import values_of
from tests.vlm_checkpoints import QWEN_TEMPLATE, make_tokenizer

CLASSES = ("person", "person", "dog", "bench", "umbrella")
PREDICATES = ("riding", "next to", "in front of", "sitting on")
ENGLISH = English(load_phrases())

NASTY = (
    "<image>",
    "</s>",
    "<|im_start|>",
    "[INST]",
    "{question}",
    "<|vision_start|>",
    "a\n### User:",
    "x" * 300,
    "＜image＞",
)

BAD_TEMPLATES = {
    "templates: {existence: [{question: 'Is it?'}]}": "existence: expected question and yes and no",
    "templates: {counting: []}": "counting: expected templates",
    "templates: {counting: [{question: '{0}', answer: '{plural.upper}'}]}": (
        "counting: expected question"
    ),
    "templates: {counting: [{question: '?', answer: '{count:d}'}]}": (
        "counting: expected question and answer"
    ),
    "templates: 3": "templates: Input should be a valid dictionary",
    "[": "not valid YAML",
}


def world_of(count: int, seed: int = 0) -> tuple[list[Record], World]:
    """Images whose candidates are true with the probability of their confidence, and which of them
    are.
    """
    rng = random.Random(seed)
    scenes = []
    world = World.__new__(World)
    world.objects = {}
    world.relations = {}
    for number in range(count):
        name = f"1{number:05}"
        ranges = ((0, 200), (0, 140), (10, 100), (10, 100))
        number = rng.randint(2, 5)
        boxes = [
            Box(rng.choice(CLASSES), 1, tuple(rng.randint(*bounds) for bounds in ranges))
            for _ in range(number)
        ]
        record = Record(name, "drawn", "val", f"{name}.png", 320, 240, boxes)
        stated = {
            (s, o): rng.sample(PREDICATES, rng.randint(0, 3)) for s in CLASSES for o in CLASSES
        }
        true = set()
        for subject in range(len(boxes)):
            for object_ in set(range(len(boxes))) - {subject}:
                predicates = stated[boxes[subject].category, boxes[object_].category]
                if predicates:
                    record.pairs.append(Pair(subject, object_, predicates))
                for predicate in predicates:
                    low, high = rng.choices(
                        [(0.001, 0.015), (0.93, 0.999), (0.02, 0.93)], (5, 4, 1)
                    )[0]
                    confidence = rng.uniform(low, high)
                    record.relations.append(Relation(subject, object_, predicate, confidence))
                    if rng.random() < confidence:
                        true.add((subject, predicate, object_))
        scenes.append(record)
        corners = [
            (x, y, x + width, y + height) for x, y, width, height in values_of(boxes, "bbox")
        ]
        world.objects[name] = {
            at: (box.category, str([*corners[at]])) for at, box in enumerate(boxes)
        }
        world.relations[name] = true
    return scenes, world


def labelled(
    root: Path, scenes: Sequence[Record], *, threshold: float = 0.0, rows: int = 200
) -> Path:
    """A run whose candidates of at least `threshold` are relations."""
    scenes = [
        replace(
            record,
            relations=[
                r for r in record.relations if r.confidence is None or r.confidence >= threshold
            ],
        )
        for record in scenes
    ]
    make_shards(root, scenes, rows)
    manifest = Manifest.load(root)
    manifest.run |= {
        "identity": {"tag": {"method": "rtagger", "tagger": "t", "threshold": threshold}}
    }
    manifest.rewrite()
    return root


def calibrated(run: Path) -> Path:
    """A file by which confidences are probabilities."""
    values: dict[str, Any] = {"images": 100, "judged": 1000, "correct": 500, "lowest": 0.0005}
    values["levels"] = [(0.9, 0.93, 1.0)]
    tagger = scoring_of_run(Manifest.load(run).run)
    Calibration(run="r", tagger=tagger, judged_by="people", slope=1, offset=0, **values).save(
        run.parent / "calibration.json"
    )
    return run.parent / "calibration.json"


def write(run: Path, name: str = "out", **options: object) -> list[dict[str, Any]]:
    options = {"images_url": "images/"} | options
    out = export_run(run, "instructions", run.parent / name, **options).root
    return [
        json.loads(line)
        for path in sorted(out.glob("*.jsonl"))
        for line in path.open(encoding="utf-8")
    ]


@dataclass(frozen=True)
class Exported:
    """A run whose confidences are calibrated, what is true of its images, and its items."""

    world: World
    run: Path
    items: list[dict[str, Any]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Tests must not change it."""
    scenes, world = world_of(350)
    run = labelled(tmp_path_factory.mktemp("exported") / "run", scenes)
    return Exported(world, run, write(run, calibration=calibrated(run)))


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def templates() -> Any:
    return yaml.safe_load(TEMPLATES.read_text(encoding="utf-8"))["templates"]


@pytest.mark.slow
def test_answers_are_right_as_often_as_promised_by_kind(exported, templates):
    """Read from their text by a program that shares no code with the exporter, against the
    truth.
    """
    run = exported.run
    items = write(run, "precise", calibration=calibrated(run), precision=0.9)
    by_kind = defaultdict[str, list[Checked]](list)
    for item in items:
        by_kind[item["kind"]].append(check(exported.world, templates, item))
    assert len(by_kind) == 8
    assert set(values_of(items, "template")) == {
        f"{f}/{n + 1}" for f, listed in templates.items() for n in range(len(listed))
    }
    for kind, checked in by_kind.items():
        assert len(checked) >= 40, kind
        promised = [answer.item["probability"] for answer in checked]
        assert min(promised) >= 0.9, kind
        right = sum(values_of(checked, "right")) / len(checked)
        spread = (sum(p * (1 - p) for p in promised)) ** 0.5 / len(checked)
        assert right >= max(sum(promised) / len(checked) - 4 * spread - 0.01, 0.9), kind
    denied = [is_true for answer in by_kind.values() for one in answer for is_true in one.denied]
    assert len(denied) > 500
    assert sum(denied) / len(denied) <= 0.02


def test_the_text_alone_does_not_tell_the_answer(exported):
    """Each text, without coordinates, has each of its answers equally often; of a comparison,
    within one.
    """
    answers = defaultdict[Any, Counter[str]](Counter)
    for item in exported.items:
        if item["kind"] != "description":
            text = re.sub(BOX, "[]", item["messages"][0]["content"][-1]["text"])
            answers[item["kind"], text][item["answer"]] += 1
    assert len({kind for kind, _ in answers}) == 7
    for (kind, text), counts in answers.items():
        options = len(re.findall(r"^[A-E]\. ", text, re.MULTILINE))
        assert len(counts) == options or not options, text
        numbers = (
            [counts[answer] for answer in ("first", "second")]
            if kind == "comparison"
            else counts.values()
        )
        assert max(numbers) - min(numbers) <= (kind == "comparison"), (text, counts)
        assert len(counts) > 1 or kind == "comparison", text
    compared = sum(
        (counts for (kind, _), counts in answers.items() if kind == "comparison"), Counter[str]()
    )
    assert abs(compared["first"] - compared["second"]) <= 0.1 * compared.total()


def boxes_in(item: dict[str, Any]) -> list[tuple[int, ...]]:
    text = item["messages"][0]["content"][-1]["text"]
    return [tuple(map(int, re.findall(r"\d+", box))) for box in re.findall(BOX, text)]


def overlap(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return min(across, down) > 0


def test_boxes_of_what_is_denied_are_placed_like_those_of_what_holds(exported):
    """Each answer is as frequent where they overlap as where not; several boxes to choose from all
    overlap, or none.
    """
    answers = defaultdict[Any, Counter[str]](Counter)
    options = Counter[int]()
    for item in exported.items:
        boxes = boxes_in(item)
        if boxes and re.match("verification|choose_predicate", item["template"]):
            text = re.sub(BOX, "[]", item["messages"][0]["content"][-1]["text"])
            answers[item["kind"], text, overlap(*boxes)][item["answer"]] += 1
        elif re.match("choose_(su|o)bject", item["template"]):
            options[len({overlap(boxes[0], box) for box in boxes[1:]})] += 1
    assert len(answers) > 20
    for key, counts in answers.items():
        assert len(counts) > 1, key
        assert len({*counts.values()}) == 1, key
    assert options[1] > 40
    assert options[2] == 0


def test_coordinates_are_shown_only_where_classes_do_not_name_the_objects(exported):
    """They could tell the answer to a question that may be denied."""
    shown = Counter[bool]()
    for item in exported.items:
        if re.match("verification|choose_predicate", item["template"]):
            claim = item["relations"][0]
            objects = exported.world.objects[item["image_ids"][0]]
            classes = [objects[claim[end]][0] for end in ("subject", "object")]
            names = [name for name, _ in objects.values()]
            is_named = all(names.count(name) == 1 for name in classes)
            assert bool(boxes_in(item)) is not is_named
            shown[is_named] += 1
    assert min(shown[True], shown[False]) > 40


def test_coordinates_are_shown_where_boxes_may_be_missing(tmp_path):
    scenes, _ = world_of(120)
    for record in scenes:
        record.objects = [replace(box, origin="detector") for box in record.objects]
    run = labelled(tmp_path / "run", scenes)
    items = [
        item
        for item in write(run, calibration=calibrated(run))
        if item["template"].startswith("verification")
    ]
    assert len(items) > 40
    assert all(map(boxes_in, items))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1))
def test_quotas_are_equal_and_as_large_as_they_can_be(numbers):
    """Against all thresholds, tried one by one."""
    [drawn] = quotas(
        {Stratum("relation", "verification", ("s", "p", "o")): Counter(numbers)}
    ).values()
    assert len({*drawn.values()}) <= 1
    assert all(number <= numbers[answer] for answer, number in drawn.items())
    best = max(
        (n * k for n in range(1, 51) if (k := sum(v >= n for v in numbers.values())) > 1), default=0
    )
    assert drawn.total() == best


def test_no_predicate_gets_much_more_than_twice_the_mean():
    common = {
        Stratum("relation", "verification", ("a", p, "b")): Counter(yes=n, no=n)
        for p, n in zip("pqrst", (5, 5, 5, 5, 900), strict=True)
    }
    drawn = quotas(common)
    totals = {stratum.words[1]: answers.total() for stratum, answers in drawn.items()}
    assert totals["p"] == 10
    assert totals["t"] <= 2 * 1840 / 5 + 2
    assert all(answers["yes"] == answers["no"] for answers in drawn.values())


@pytest.mark.slow
def test_what_is_merely_unlabelled_is_never_taken_to_be_false(tmp_path):
    """Candidates of a run with a threshold are not known to be improbable; nothing is without a
    calibration.
    """
    scenes, _ = world_of(200)
    low = labelled(tmp_path / "a/run", scenes, threshold=0.01)
    high = labelled(tmp_path / "b/run", scenes, threshold=0.3)
    for run, options in ((high, {"calibration": calibrated(high)}), (low, {})):
        items = write(run, **options)
        assert items
        assert all(claim["holds"] for item in items for claim in item["relations"])
        assert set(values_of(items, "kind")).isdisjoint(
            {"existence", "multiple_choice", "none_of_these"}
        )
    absent = [
        (claim["image_id"], claim["subject"], claim["predicate"], claim["object"])
        for item in write(low, "calibrated", calibration=calibrated(low))
        for claim in item["relations"]
        if not claim["holds"]
    ]
    candidates = {
        (r.image_id, p.subject, text, p.object): None
        for r in scenes
        for p in r.pairs
        for text in p.predicates
    }
    candidates |= {
        (r.image_id, x.subject, x.predicate, x.object): x.confidence
        for r in scenes
        for x in r.relations
    }
    assert len(absent) > 100
    assert max(candidates[key] for key in absent) <= 0.02
    warning = "without --calibration, nothing is known to be false"
    assert (
        warning
        in invoke(low, "--to", "instructions", "--images-url", "i/", "--out", tmp_path / "o").stderr
    )
    note = export_run(
        high, "instructions", tmp_path / "n", images_url="i/", calibration=calibrated(high)
    )
    assert "lower tag.threshold" in note.note


def test_only_what_is_annotated_exhaustively_is_counted(tmp_path):
    two = (PERSON, DOG, replace(DOG, bbox=(1.0, 1.0, 9.0, 9.0)))

    def counted(objects: Sequence[Box], dataset: str = "drawn", **options: object) -> list[Any]:
        context = [
            scene(f"x{n}", objects=[PERSON, replace(PERSON, bbox=(n, 1, 9, 9)), DOG])
            for n in range(1, 5)
        ]
        run = tmp_path / str(len(list(tmp_path.iterdir()))) / "run"
        labelled(run, [scene("0", objects=objects, dataset=dataset), *context])
        items = write(
            run, **{key: value(run) if callable(value) else value for key, value in options.items()}
        )
        return [
            (item["answer"], item["probability"])
            for item in items
            if item["kind"] == "counting" and "0" in item["image_ids"]
        ]

    # The other images have two people each and one dog: this one is needed for the other answers.
    assert {answer for answer, _ in counted(two)} == {"1", "2"}
    assert counted(two[:2]) == []  # one object of each of two classes
    assert counted(two, "visual_genome") == counted(two, "svg") == []
    for foreign in ("hf", "hub", "label_studio"):  # nobody knows
        assert {p for _, p in counted(two, foreign)} == {None}
        assert counted(two, foreign, calibration=calibrated) == []
    assert {
        a for a, _ in counted([PERSON, *(replace(box, origin="grounded") for box in two[1:])])
    } <= {"1"}
    assert {
        a for a, _ in counted([*two, replace(DOG, bbox=(5.0, 5.0, 9.0, 9.0), iscrowd=True)])
    } <= {"1"}
    detected = [replace(box, origin="detector") for box in two]
    # how many a detector misses is not calibrated
    assert {p for _, p in counted(detected)} == {None}
    assert counted(detected, calibration=calibrated) == []


def claimed(run: Path, **options: object) -> set[tuple[int, str, int, bool]]:
    """All that the images of a run could be asked about."""
    rows = ExportRows(run, 0.0, **options)
    asked = Instructions(rows, load_phrases())
    items = [
        item
        for record in rows.records("val", "objects", "relations", "pairs")
        for item in asked.items(record)
    ]
    return {(*key, holds) for item in items for key, holds in item.claims}


def test_relations_of_other_origins_neither_hold_nor_are_denied(tmp_path):
    relations = [
        Relation(0, 1, "on", None, "annotated"), Relation(0, 1, "near", 0.99, "tagger"),
        Relation(1, 0, "under", 0.001, "tagger"), Relation(1, 0, "under", None, "annotated"),
        Relation(0, 2, "holding", 0.001, "tagger"), Relation(0, 2, "beside", None, "annotated+tagger"),
    ]  # fmt: skip
    record = scene("0")
    record.relations = relations
    record.pairs = [Pair(0, 1, ["near", "on"]), Pair(1, 0, ["under", "over"])]
    run = labelled(tmp_path / "run", [record])
    calibration = calibrated(run)
    annotated = {
        (0, "on", 1, True),
        (1, "under", 0, True),
        (0, "beside", 2, True),
        (1, "over", 0, False),
    }
    assert claimed(run, calibration=calibration, origins=["annotated"]) == annotated
    tagged = {
        (0, "near", 1, True),
        (0, "beside", 2, True),
        (1, "under", 0, True),
        (0, "holding", 2, True),
    }
    assert claimed(run, calibration=calibration, origins=["tagger"]) == tagged | {
        (1, "over", 0, False)
    }
    out = export_run(run, "instructions", tmp_path / "out", images_url="i/", origins=["annotated"])
    assert out.left_out == {"relations of other origins": 3}


@pytest.mark.slow
def test_equal_seeds_give_equal_rows_whatever_the_shards(tmp_path):
    scenes, _ = world_of(120)
    first = labelled(tmp_path / "a/run", scenes)
    other = labelled(tmp_path / "b/run", scenes, rows=7)
    options: dict[str, Any] = {"calibration": calibrated(first)}
    items = write(first, **options)
    assert write(other, **options) == items
    assert write(first, "again", seed=0, **options) == items
    assert write(first, "other", seed=1, **options) != items


@pytest.mark.parametrize("coordinates", ["pixel", "normalised", "0-1000"])
def test_coordinates(tmp_path, coordinates):
    scenes, _ = world_of(60)
    run = labelled(tmp_path / "run", scenes)
    [item, *_] = [
        item for item in write(run, coordinates=coordinates) if item["kind"] == "description"
    ]
    [record] = [record for record in scenes if record.image_id == item["image_ids"][0]]
    claim = item["relations"][0]
    x, y, width, height = record.objects[claim["subject"]].bbox
    corners = (x, y, x + width, y + height)
    sides = (320, 240, 320, 240)
    shares = [corner / side for corner, side in zip(corners, sides, strict=True)]
    shown = {
        "pixel": f"{[round(v) for v in corners]}",
        "normalised": f"[{', '.join(f'{share:.3f}' for share in shares)}]",
        "0-1000": f"{[round(1000 * share) for share in shares]}",
    }[coordinates]
    assert f" at {shown} is {claim['predicate']} the " in item["messages"][1]["content"][0]["text"]


@given(st.text() | st.text("abcgpqxyz ", min_size=1) | st.sampled_from(NASTY) | st.just("cPg"))
def test_names_cannot_be_chat_tokens(name):
    plain = plain_name(name)
    assert not set("<>|[]{}\n\r`#_\\") & set(plain)
    assert len(plain) <= 100
    assert plain_name(plain) == plain
    if plain:  # whatever it is, a sentence can have it
        assert ENGLISH.noun(plain)[0].endswith(plain)
        assert all((ENGLISH.predicate(plain) or {"verb": "asked"}).values())


def test_a_chat_template_sees_only_its_own_tokens(tmp_path):
    """That of Qwen2-VL, through transformers: one image each, two turns."""
    scenes, _ = world_of(150)
    nasty = dict(zip(("person", "dog", "bench", "umbrella"), NASTY, strict=False))
    predicates = {"riding": "<|im_end|>", "next to": "x" * 300}
    for record in scenes:
        record.objects = [replace(box, category=nasty[box.category]) for box in record.objects]
        for relation in record.relations:
            relation.predicate = predicates.get(relation.predicate, relation.predicate)
        record.pairs = []
    run = labelled(tmp_path / "run", scenes)
    tokenizer = make_tokenizer(
        ["<|im_start|>", "<|im_end|>", "<|image_pad|>"], eos_token="<|im_end|>"
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    items = write(run, calibration=calibrated(run))
    assert len(items) > 100
    for item in items:
        text = tokenizer.apply_chat_template(item["messages"], tokenize=False)
        assert text.count("<|im_start|>") == text.count("<|im_end|>") == 2
        assert text.count("<|image_pad|>") == len(item["images"]) == len(item["image_ids"])
        assert text.count("<") == 4 + 3 * len(item["images"])


@pytest.mark.slow
def test_datasets_reads_both_files(tmp_path):
    scenes, _ = world_of(15)
    images = draw_images(tmp_path / "images", scenes)
    run = labelled(tmp_path / "run", scenes)
    options: dict[str, Any] = {
        "images": str(images),
        "images_url": None,
        "calibration": calibrated(run),
    }
    items = write(run, **options)
    export_run(run, "instructions", tmp_path / "embedded", parquet=True, embed=True, **options)
    for kind, file in (("parquet", "embedded/val.parquet"), ("json", "out/val.jsonl")):
        files = {"data_files": str(tmp_path / file), "cache_dir": str(tmp_path / "cache")}
        rows = datasets.load_dataset(kind, split="train", **files)
        assert values_of(rows, "answer") == values_of(items, "answer")
        questions = [
            [row["messages"][1]["content"][0]["text"] for row in loaded] for loaded in (rows, items)
        ]
        assert questions[0] == questions[1]
        if kind == "parquet":
            assert all(image.size == (320, 240) for row in rows for image in row["images"])
        else:
            assert all(Path(path).is_file() for row in rows for path in row["images"])


def test_bad_templates_are_refused_in_one_line(tmp_path):
    run = labelled(tmp_path / "run", world_of(3)[0])
    file = tmp_path / "own.yaml"
    out = tmp_path / "out"
    for text, message in BAD_TEMPLATES.items():
        file.write_text(text)
        result = invoke(
            run, "--to", "instructions", "--templates", file, "--images-url", "i/", "--out", out
        )
        assert (result.exit_code, len(result.stderr.splitlines()), out.exists()) == (2, 1, False)
        assert "own.yaml" in result.stderr
        assert message in result.stderr


def test_doubled_braces_are_braces_as_in_other_format_strings(tmp_path):
    own_template = {
        "question": 'How many {plural}? As {{"count": NUMBER}}.',
        "answer": '{{"count": {count}}}',
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"templates": {"counting": [own_template]}}))
    [template] = load_phrases(tmp_path / "own.yaml").templates["counting"]
    assert (
        filled(template["question"], {"plural": "dogs"}) == 'How many dogs? As {"count": NUMBER}.'
    )
    assert filled(template["answer"], {"count": "2"}) == '{"count": 2}'


def test_class_names_as_english_has_them():
    plurals = {
        "a person": "people",
        "an umbrella": "umbrellas",
        "a wine glass": "wine glasses",
        "a knife": "knives",
        "a cabinet/shelf": "cabinets/shelves",
        "a sheep": "sheep",
        "a bus": "buses",
        "a TV": "TVs",
        "grass": "",
    }
    for noun, plural in plurals.items():
        assert ENGLISH.noun(noun.removeprefix("an ").removeprefix("a ")) == (noun, plural, False)
    assert ENGLISH.noun("skis") == ("skis", "skis", True)


@pytest.mark.parametrize(
    ("predicate", "is_many", "question", "statement"),
    [
        ("rides", False, "is riding", "is riding"), ("on", True, "are on", "are on"),
        ("can see", True, "do see", "see"), ("has", False, "does have", "has"), ("has", True, "do have", "have"),
        ("made of", False, "is made of", "is made of"), ("feed", False, "is feeding", "is feeding"),
        ("sit on", False, "is sitting on", "is sitting on"), ("in front of", False, "is in front of", "is in front of"),
        ("about to hit", False, "is about to hit", "is about to hit"),
    ],
)  # fmt: skip
def test_predicates_as_english_has_them(predicate, is_many, question, statement):
    fields = ENGLISH.predicate(predicate, is_many)
    assert fields is not None
    assert (f"{fields['is']} {fields['verb']}", fields["is_verb"]) == (question, statement)
