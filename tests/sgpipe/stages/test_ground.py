"""The ground stage: which words are looked for, and which of the boxes that are found become
objects.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import box_iou

from sgpipe.errors import UserError
from sgpipe.recipe import StagePlan, load_recipe, packaged_model
from sgpipe.records import Box, Caption, Record, Triplet
from sgpipe.stages.detect import DetectedBoxes, DetectStage, Prepared, load_prompted
from sgpipe.stages.ground import GroundStage
from sgpipe.stages.pair import PairStage
from tests.sgpipe.stages.detect.detectors import make_closed, make_grounding_dino
from tests.values import values_of

SIZE = (64, 48)
CPU = torch.device("cpu")
Corners = tuple[float, float, float, float]
Found = Mapping[str, Sequence[tuple[Corners, float]]]
PERSON = Box("person", 1, (1.0, 1.0, 9.0, 9.0))


class Scripted:
    """A detector that finds what a script says of each text, and keeps what it was asked for."""

    def __init__(self, boxes_of_words: Found, limit: int = 99) -> None:
        self.found = boxes_of_words
        self.limit = limit
        self.asked = list[list[str]]()

    def reads(self, name: str) -> bool:
        return len(name) <= self.limit

    def ask(self, names: list[str]) -> None:
        self.asked.append(names)
        self.names = names

    def prepare(self, image: Image.Image) -> Prepared:
        return Prepared({}, (image.height, image.width))

    def detect(self, image: Prepared, threshold: float) -> DetectedBoxes:
        rows = [
            (*row, label)
            for label, name in enumerate(self.names)
            for row in self.found.get(name, ())
        ]
        rows = [row for row in rows if not row[1] <= threshold]
        boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
        return DetectedBoxes(
            torch.tensor(boxes).view(-1, 4),
            torch.tensor(scores).float(),
            torch.tensor(labels).long(),
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ground")
    Image.new("RGB", SIZE).save(folder / "a.png")
    return folder


def stage(
    folder: Path, boxes_of_words: Found | Scripted, classes: Sequence[str] = (), **changes: object
) -> GroundStage:
    changed = {f"ground.{key}": value for key, value in changes.items()}
    recipe = load_recipe("folder", {"ground.detector": "d", **changed})
    ground_stage = GroundStage(
        StagePlan.of_recipe(recipe),
        {"all": folder},
        {name: at for at, name in enumerate(classes, 1)},
        "coco",
    )
    ground_stage.detector = (
        boxes_of_words if isinstance(boxes_of_words, Scripted) else Scripted(boxes_of_words)
    )  # type: ignore[assignment]
    ground_stage.threads = 0
    ground_stage.language = None
    ground_stage._learn_names()
    return ground_stage


def record(
    *stated: str | tuple[str, str], objects: Sequence[Box] = (), name: str = "a.png"
) -> Record:
    """A record with a caption and a triplet for each two nouns, which are phrases, or phrases and
    their heads.
    """
    nouns = [(noun, noun.split()[-1]) if isinstance(noun, str) else noun for noun in stated]
    nouns += [("view", "view")] * (len(nouns) % 2)
    triplets = [
        Triplet(
            nouns[at][0], "near", nouns[at + 1][0], nouns[at][1], nouns[at + 1][1], "near", at // 2
        )
        for at in range(0, len(nouns), 2)
    ]
    captions = [Caption(f"{triplet.subject} near {triplet.object}") for triplet in triplets]
    return Record("7", "folder", "all", name, *SIZE, list(objects), captions, triplets)


def asked(
    folder: Path, *stated: str | tuple[str, str], objects: Sequence[Box] = (), **changes: object
) -> list[str]:
    return list(stage(folder, {}, **changes).words(record(*stated, objects=objects)))  # type: ignore[arg-type]


def test_only_things_that_no_box_carries_are_looked_for(folder: Path) -> None:
    words = (
        "two men",
        "forklifts",
        "background",
        "left",
        "view",
        "it",
        "14",
        "hot dog",
        "traffic cone",
        "puppies",
    )
    singular = {"forklifts": "forklift", "puppies": "puppy", "two men": "man"}
    nouns = [(word, singular.get(word, word.split()[-1])) for word in words]
    assert asked(folder, *nouns) == ["person", "forklift", "hot dog", "traffic cone", "dog"]
    assert asked(folder, *nouns, objects=[PERSON]) == ["forklift", "hot dog", "traffic cone", "dog"]
    assert asked(folder, *nouns, ask="words") == [
        "two man",
        "forklift",
        "hot dog",
        "traffic cone",
        "puppy",
    ]
    crowd = Box("dog", 18, (0.0, 0.0, 9.0, 9.0), iscrowd=True)
    assert asked(folder, *nouns, objects=[PERSON, crowd]) == ["forklift", "hot dog", "traffic cone"]


def test_a_found_word_is_an_object_after_the_given_ones(folder: Path) -> None:
    boxes_of_words = {
        "dog": [((10, 10, 30, 30), 0.75)],
        "traffic cone": [((40, 5, 70, 40), 0.875), ((-9, -9, 0, 0), 0.9)],
    }
    image = record("puppy", "traffic cone", "woman", objects=[PERSON])
    given_boxes = copy.deepcopy(image.objects)
    stage(folder, boxes_of_words, ("person", "dog"))([image])
    assert image.objects[:1] == given_boxes
    cone, dog = image.objects[1:]
    assert cone == Box(
        "cone",
        cone.category_id,
        (40, 5, 24, 35),
        origin="grounded",
        score=0.875,
        phrase="traffic cone",
    )
    assert dog == Box("dog", 2, (10, 10, 20, 20), origin="grounded", score=0.75, phrase="puppy")
    assert 2**30 <= cone.category_id < 2**31
    # without any classes, ids of COCO
    [alone] = stage(folder, boxes_of_words)([record("puppy", "cone", "dog")])
    assert values_of(alone.objects, "category", "category_id", "phrase") == [
        ("dog", 18, "puppy, dog")
    ]


def matched(ground: GroundStage, image: Record) -> list[tuple[str | None, str | None]]:
    """The categories that the pair stage gives the triplets."""
    pairs = PairStage(load_recipe("folder").pair, "coco", ())
    pairs.setup()
    pairs(ground([image]))
    return values_of(image.triplets, "subject_category", "object_category")


def test_the_pair_stage_matches_free_nouns_by_their_heads(folder: Path) -> None:
    boxes_of_words = {
        name: [((x, 0, x + 9, 9), 0.5)] for name, x in (("cone", 1), ("dog", 12), ("bun", 24))
    }
    image = record("traffic cone", "cone", "hot dog", "bun", "puppy", "cones", objects=[])
    image.triplets[2].object_head = "cone"
    # a hot dog is no dog
    assert matched(stage(folder, boxes_of_words), image) == [
        ("cone", "cone"),
        (None, "bun"),
        ("dog", "cone"),
    ]
    # a class that the dataset has is known by its name
    given_cone = Box("cone", 5, (0.0, 0.0, 9.0, 9.0))
    assert asked(folder, "traffic cone", objects=[given_cone], words="triplets") == ["traffic cone"]


def test_words_that_may_stand_for_a_class_are_carried_by_it_or_named_as_they_are(
    folder: Path,
) -> None:
    bottle = Box("bottle", 44, (0.0, 0.0, 9.0, 9.0))
    assert asked(folder, "beer", objects=[bottle]) == []
    assert asked(folder, "beer") == ["beer"]
    boxes_of_words = {"beer": [((1, 0, 9, 9), 0.5)], "bottle": [((20, 0, 29, 9), 0.5)]}
    image = record("bottle", "beer", "beer", "beers")
    image.triplets[1].object_head = "beer"
    assert matched(stage(folder, boxes_of_words), image) == [("bottle", "beer"), ("beer", "beer")]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_kept_boxes_are_those_of_a_greedy_search(folder: Path, data: st.DataObject) -> None:
    corner = st.tuples(
        st.integers(0, 50), st.integers(0, 40), st.integers(1, 14), st.integers(1, 8)
    )
    texts = ("dog", "cone", "wheel", "motorcycle")
    scores = iter(data.draw(st.permutations(range(1, 33))))
    boxes_of_words = {
        text: [
            ((x, y, x + w, y + h), next(scores) / 40)
            for x, y, w, h in data.draw(st.lists(corner, max_size=8))
        ]
        for text in texts
    }
    names = st.sampled_from(("motorbike", "cat", "cup"))
    given_boxes = data.draw(st.lists(st.tuples(names, corner), max_size=5))
    objects = [Box(name, 1, tuple(map(float, box))) for name, box in given_boxes]
    limit = data.draw(st.integers(1, 12))
    image = record(*texts, objects=objects)
    before = copy.deepcopy(image)
    stage(folder, boxes_of_words, ("motorbike", "cat", "cup"), threshold=0.1, max_boxes=limit)(
        [image]
    )
    assert (image.captions, image.triplets) == (before.captions, before.triplets)
    assert image.objects[: len(objects)] == before.objects

    selected: list[tuple[float, str, Corners]] = []
    within: list[tuple[float, str, Corners]] = []
    rows = (
        (score, text, box)
        for text, word_boxes in boxes_of_words.items()
        for box, score in word_boxes
        if score > 0.1
    )
    for row in sorted(rows, reverse=True):
        if not any(other == row[1] and iou(box, row[2]) > 0.5 for _, other, box in within):
            within.append(row)
    for row in within:
        if not any(iou(box, row[2]) > 0.9 for _, _, box in selected):
            selected.append(row)
    bikes = [
        (x, y, x + w, y + h)
        for box in objects
        if box.category == "motorbike"
        for x, y, w, h in [box.bbox]
    ]
    selected = [
        row
        for row in selected
        if row[1] != "motorcycle" or all(iou(box, row[2]) <= 0.5 for box in bikes)
    ]
    turns = [sum(other[1] == row[1] for other in selected[:at]) for at, row in enumerate(selected)]
    chosen = sorted(sorted(range(len(selected)), key=lambda at: (turns[at], at))[:limit])
    grounded = image.objects[len(objects) :]
    assert values_of(grounded, "category", "bbox") == [
        (selected[at][1], (x1, y1, x2 - x1, y2 - y1))
        for at in chosen
        for x1, y1, x2, y2 in [selected[at][2]]
    ]
    assert image.left_out["grounded"] == len(selected) - len(chosen)


def iou(*boxes: Corners) -> float:
    return float(box_iou(*(torch.tensor([box], dtype=torch.float64) for box in boxes)))


def test_many_words_and_boxes_are_cut_and_counted(folder: Path) -> None:
    grid = [
        ((x * 4, y * 3, x * 4 + 3, y * 3 + 2), 0.5 + (16 * y + x) / 1000)
        for y in range(15)
        for x in range(16)
    ]
    below = [((x * 4, 45, x * 4 + 3, 47.5), 0.9) for x in range(16)]
    scripted = Scripted({"bird": grid + below, "cone": [((1, 1, 60, 40), 0.4)]})
    [image] = stage(folder, scripted)([record("bird", "cone")])
    assert (len(image.objects), image.left_out) == (50, {"words": 0, "grounded": 207})
    assert values_of(image.objects, "category").count("cone") == 1
    words = [f"thing{'abcdefghij'[n % 10]}{n}" for n in range(2000)]
    [many] = stage(folder, scripted)([record(*words, words[1500], "a" * 100)])
    assert scripted.asked[-1] == [words[1500], *words[:29]]  # what most captions say comes first
    assert (many.objects, many.left_out["words"]) == ([], 1971)


def test_images_without_words_are_not_opened_and_bad_ones_are_error_rows(folder: Path) -> None:
    scripted = Scripted({})
    blank = record("view", objects=[PERSON], name="no.png")
    missing = record("dog", name="no.png")
    failed = record("dog")
    failed.fail("caption", "why")
    nothing = record("dog")
    stage(folder, scripted)([blank, missing, failed, nothing])
    assert (blank.ok, blank.objects, nothing.ok, nothing.objects) == (True, [PERSON], True, [])
    assert str(missing.error).startswith("ground: image file not found")
    assert failed.error == "caption: why"
    assert scripted.asked == [["dog"]]


def test_images_are_prepared_in_threads_and_get_the_same_boxes(tmp_path: Path) -> None:
    image = Image.effect_mandelbrot(SIZE, (-2, -1, 1, 1), 60).convert("RGB")
    for turn in range(5):
        image.rotate(20 * turn).save(tmp_path / f"{turn}.png")
    results = []
    values = {"ground.detector": str(make_grounding_dino(tmp_path / "d")), "ground.threshold": 0.01}
    for threads in (0, 3):
        recipe = load_recipe("folder", {**values, "ground.resources.io_threads": threads})
        ground_stage = GroundStage(StagePlan.of_recipe(recipe), {"all": tmp_path}, {}, "coco")
        ground_stage.setup()
        prepare = ground_stage.detector.prepare
        used = set[threading.Thread]()
        ground_stage.detector.prepare = lambda image, used=used, prepare=prepare: (
            used.add(threading.current_thread()),
            prepare(image),
        )[1]
        results.append(
            values_of(
                ground_stage([record("dog", "cup", name=f"{turn}.png") for turn in range(5)]),
                "objects",
            )
        )
        assert (threading.main_thread() in used) == (threads == 0)
    assert results[0] == results[1]
    assert any(results[0])


def test_all_nouns_are_those_of_triplets_and_others(folder: Path) -> None:
    recipe = load_recipe(
        "folder", {"ground.detector": str(packaged_model("parseda")), "ground.words": "all"}
    )
    ground_stage = GroundStage(StagePlan.of_recipe(recipe), {"all": folder}, {}, "coco")
    ground_stage.setup()
    caption = "a red fire truck and a group of people in the background of a wooden barn"
    words = ground_stage.words(
        Record("1", "folder", "all", "a.png", *SIZE, captions=[Caption(caption)])
    )
    expected = [(noun, noun) for noun in ("truck", "person", "barn")]
    assert [(text, word.category) for text, word in words.items()] == expected


def test_a_detector_asked_for_other_words_is_one_of_these_classes(tmp_path: Path) -> None:
    image = Image.effect_mandelbrot(SIZE, (-2, -1, 1, 1), 60).convert("RGB")
    folder = str(make_grounding_dino(tmp_path / "d"))
    names = ["cup", "dining table", "dog"]
    first = load_prompted(folder, ["thing7"], CPU)
    prepared = first.prepare(image)
    expected = load_prompted(folder, names, CPU).detect(prepared, 0.01)
    assert len(expected.scores)
    other = copy.copy(first)
    other.ask(names)
    for got, part in zip(other.detect(prepared, 0.01), expected, strict=True):
        assert torch.equal(got, part)
    assert first.reads("dog")
    long = "thing1 " * 400
    assert not first.reads(long)
    with pytest.raises(UserError, match="tokens"):
        first.ask([long])
    detect = DetectStage(
        load_recipe("folder", {"detect.detector": folder}).detect, {"all": tmp_path}
    )
    detect.setup()
    assert detect.detector._model is first._model  # type: ignore[attr-defined] # loaded once


def grounding(detector: object) -> GroundStage:
    recipe = load_recipe("folder", {"ground.detector": str(detector)})
    return GroundStage(StagePlan.of_recipe(recipe), {}, {}, "coco")


def test_a_detector_that_reads_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    reason = "cannot be asked for words; use a detector that reads text"
    tagger = (packaged_model("tagger"), "is not an object detector")
    for model, message in ((make_closed(tmp_path / "d"), reason), tagger, ("no/such", "")):
        with pytest.raises(UserError, match=rf"{model}.*{message}"):
            grounding(model).check()
    grounding(packaged_model("parseda")).check()
