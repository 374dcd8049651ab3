"""The tag stage: what a pair is scored against, what is kept, error rows; and other ways to decide:
all, a scorer.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlip_model.image import to_pixel_values
from rlip_model.model import RTagger
from rlip_model.queries import GivenPairs
from sgpipe.calibration import load_calibration, scoring_of_recipe
from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig, Recipe, TagConfig, recipe_notes
from sgpipe.records import NO_OBJECT, Box, Pair, Record
from sgpipe.stages.score.scorer import Refusal
from sgpipe.stages.tag.methods import AssumedStage, check_tagger
from sgpipe.stages.tag.stage import Batch, ScoredStage, TagStage, normalised_boxes, own_batches
from tests.clip_checkpoints import make_clip
from tests.factories import make_calibration, make_tagger
from tests.values import values_of

NAMES = ("person", "dog", "bench")
PREDICATES = ("sitting on", "next to", "holding", "under")
PAIRS = [
    Pair(0, 2, ["sitting on"]), Pair(0, 1, ["holding", "next to"]), Pair(1, 2, ["under", "next to"]),
    Pair(3, 2, ["sitting on"]), Pair(3, 1, ["holding"]),
]  # fmt: skip

OTHERS = ("above", "near", "behind", "front", "objects")

OBJECTS = [
    Box("person", 0, (10, 10, 40, 60)), Box("dog", 1, (50, 20, 30, 30)),  # touches the person
    Box("bench", 2, (20, 50, 70, 30)), Box("cup", 3, (25, 55, 0, 5)), Box(NO_OBJECT, 0, (0, 0, 0, 0)),
]  # fmt: skip
CANDIDATES = [
    Pair(0, 1, ["holding", "next to"]), Pair(0, 2, ["sitting on"]), Pair(0, 3, ["holding"]), Pair(0, 4, ["smiling"]),
    Pair(2, 1, ["next to"]),
]  # fmt: skip
ALL = [(pair.subject, pair.object, text) for pair in CANDIDATES for text in pair.predicates]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and images; the scores of an untrained tagger are slightly above 0."""
    folder = tmp_path_factory.mktemp("tag")
    make_clip(folder / "clip")
    make_tagger(
        folder / "tagger", [*NAMES, *PREDICATES, "no objects in front of above near behind"]
    )
    noise = np.random.default_rng(0)
    for index in range(4):
        pixels = noise.integers(0, 256, (90 + index, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def record(index: int, pairs: list[Pair] | None = None) -> Record:
    boxes = [
        (10.0, 10.0, 40.0, 60.0),
        (50.0, 20.0, 30.0, 30.0),
        (20.0, 50.0, 70.0, 30.0),
        (0.0, 0.0, 120.0, 80.0),
    ]
    categories = ("person", "dog", "bench", "person")
    objects = [
        Box(name, index, bbox)
        for index, (name, bbox) in enumerate(zip(categories, boxes, strict=True))
    ]
    candidates = copy.deepcopy(PAIRS) if pairs is None else pairs
    return Record(
        str(index), "test", "val", f"{index}.png", 120, 90 + index, objects, pairs=candidates
    )


def stage(
    folder: Path, pair: PairConfig | None = None, names: Sequence[str] = NAMES, **changes: object
) -> TagStage:
    """A stage of its own, with nothing cached."""
    matching = None if pair is None else pair.model_dump_json()
    return copy.deepcopy(_loaded(folder, matching, tuple(names), tuple(changes.items())))


@cache
def _loaded(
    folder: Path,
    matching: str | None,
    names: tuple[str, ...],
    changes: tuple[tuple[str, object], ...],
) -> TagStage:
    values = {
        "tagger": str(folder / "tagger"),
        "short_side": 64,
        "long_side": 128,
        "threshold": 0.0,
        **dict(changes),
    }
    pair = None if matching is None else PairConfig.model_validate_json(matching)
    tag_stage = TagStage(TagConfig.model_validate(values), {"val": folder}, names, pair)
    tag_stage.setup()
    return tag_stage


def stated(tagged: Record) -> list[tuple[int, int, str]]:
    return values_of(tagged.relations, "subject", "object", "predicate")


def test_a_group_shares_its_predicates(folder: Path) -> None:
    [tagged] = stage(folder, PairConfig(restrict="group"))([record(0)])
    assert set(stated(tagged)) == {
        (pair.subject, pair.object, text) for pair in PAIRS for text in PREDICATES
    }
    assert len(tagged.relations) == 20, "a pair listed once per predicate is one row per predicate"
    [narrow] = stage(folder, PairConfig(restrict="group"), group_size=3, chunk=1)([record(0)])
    of_pair = {
        pair: {text for s, o, text in stated(narrow) if (s, o) == pair} for pair in ((3, 1), (3, 2))
    }
    assert of_pair == {(3, 1): {"holding"}, (3, 2): {"under", "next to", "sitting on"}}


def test_the_own_predicates_of_a_pair_have_the_scores_of_the_network(folder: Path) -> None:
    """By hand: the reduced image, all class names, the group's predicates, and pairs with the
    largest boxes first.
    """
    [tagged] = stage(folder)([record(0)])
    assert set(stated(tagged)) == {
        (pair.subject, pair.object, text) for pair in PAIRS for text in pair.predicates
    }
    network = RTagger.from_pretrained(folder / "tagger")
    texts = sorted(PREDICATES)
    labels = network.encode_labels(["bench", "dog", "person", "no objects"], texts)
    pixels = to_pixel_values(Image.open(folder / "0.png"), 64, 128)
    boxes = normalised_boxes(tagged)
    classes = torch.tensor([2, 1, 0, 2])
    rows = [(3, 2), (3, 1), (0, 2), (0, 1), (1, 2)]
    subjects, objects = torch.tensor(rows).T
    pairs = GivenPairs(boxes[subjects], boxes[objects], classes[subjects], classes[objects])
    with torch.no_grad():
        logits = network(pixels[None], None, labels, [pairs]).final.relation_logits[0]
    for relation in tagged.relations:
        row = rows.index((relation.subject, relation.object))
        expected = float(logits[row, texts.index(relation.predicate)].sigmoid())
        assert relation.confidence == pytest.approx(expected, rel=1e-5)


def in_batches(tagger: TagStage, size: int) -> TagStage:
    """As on a GPU."""
    tagger.threads, tagger.gpu_threads, tagger.memory.batch_size = 2, 1, size
    return tagger


def of_many_groups(
    folder: Path, pair: PairConfig | None = None, names: Sequence[str] = NAMES
) -> TagStage:
    """Groups of pairs of different numbers and predicates."""
    return stage(folder, pair, names, group_size=2, chunk=2)


def of_equal_size() -> list[Record]:
    """Images of two sizes by turns; pairs and predicates of each its own."""
    records = [record(index % 2) for index in range(7)]
    for index, image in enumerate(records):
        image.image_id = str(index)
        image.pairs = image.pairs[index % 3 : index % 3 + 1 + index % 4]
    records[3].pairs.append(Pair(2, 1, ["above", "near"]))
    return records


@pytest.mark.parametrize("restrict", ["pair", "group"])
def test_images_in_batches_of_one_size_get_the_scores_that_they_get_alone(
    folder: Path, restrict: str
) -> None:
    pair = PairConfig.model_validate({"restrict": restrict})
    records = of_equal_size()
    tagger = in_batches(of_many_groups(folder, pair), 3)
    records[2].file_name = "absent.png"
    shapes = encoded(tagger)
    alone = of_many_groups(folder, pair)(copy.deepcopy(records))
    assert_same(tagger(records), alone)
    assert values_of(records, "ok") == [index != 2 for index in range(7)]
    assert sorted(shapes) == [(3, 3, 64, 84), (3, 3, 64, 85)]


def assert_same(together: list[Record], alone: list[Record]) -> None:
    for one, other in zip(together, alone, strict=True):
        assert (one.image_id, stated(one)) == (other.image_id, stated(other))
        confidences = values_of(other.relations, "confidence")
        assert values_of(one.relations, "confidence") == pytest.approx(confidences, abs=1e-5)


def per_image(
    folder: Path, other_count: int, names: Sequence[str] = (*NAMES, *OTHERS), **changes: object
) -> TagStage:
    return stage(
        folder,
        None,
        names,
        vocabulary="image",
        vocabulary_others=other_count,
        group_size=2,
        chunk=2,
        **changes,
    )


@pytest.mark.slow
def test_a_vocabulary_of_the_image_that_has_all_classes_gives_the_same_bits(folder: Path) -> None:
    expected = of_many_groups(folder, names=(*NAMES, *OTHERS))(of_equal_size())
    assert per_image(folder, len(OTHERS))(of_equal_size()) == expected
    assert per_image(folder, 0, NAMES)([record(0)]) == of_many_groups(folder)([record(0)])
    assert per_image(folder, 2)(of_equal_size()) != expected


def test_the_image_decides_its_vocabulary_with_the_seed(folder: Path) -> None:
    tagger = per_image(folder, 2)
    records = of_equal_size()
    lists = list(map(tagger._classes, records))
    assert all(
        words == sorted(words) and set(NAMES) < set(words) and len(words) == 5 for words in lists
    )
    assert len(set(map(tuple, lists))) > 1
    backwards = per_image(folder, 2, [*OTHERS, *reversed(NAMES)])
    assert list(map(backwards._classes, records[::-1])) == lists[::-1]
    tagger.seed = 1
    assert list(map(tagger._classes, records)) != lists


def test_images_with_vocabularies_of_unequal_length_are_scored_as_alone(folder: Path) -> None:
    def records() -> list[Record]:
        images = of_equal_size()
        for image in images[::3]:
            image.objects[1].category = "bench"  # one class less
        return images

    alone = [per_image(folder, 2)([image])[0] for image in records()]
    assert all(values_of(alone, "relations"))
    assert per_image(folder, 2)(records()[::-1])[::-1] == alone
    assert_same(in_batches(per_image(folder, 2), 7)(records()), alone)


def encoded(tag_stage: TagStage, largest: int = 99) -> list[tuple[int, ...]]:
    """The shapes of all batches that the tagger will encode; of more than `most` images, it has no
    memory for one.
    """
    shapes = []
    encode_image = tag_stage.tagger.encode_image

    def encode(pixels: torch.Tensor) -> object:
        shapes.append(tuple(pixels.shape))
        if len(pixels) > largest:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encode_image(pixels)

    tag_stage.tagger.encode_image = encode
    return shapes


def test_a_batch_that_is_too_large_for_the_memory_is_halved_from_then_on(folder: Path) -> None:
    tagger = in_batches(of_many_groups(folder), 4)
    shapes = encoded(tagger, largest=1)
    tagged = tagger([record(0) for _ in range(7)])
    assert all(item.relations == tagged[0].relations for item in tagged)
    assert [shape[0] for shape in shapes[:4]] == [4, 4, 2, 1]
    assert tagger.memory.batch_size == 1


def in_order(tagged: Record, order: Sequence[int]) -> Record:
    """The same record with its boxes in another order."""
    place = {old: new for new, old in enumerate(order)}
    moved = sorted((place[p.subject], place[p.object], p.predicates) for p in tagged.pairs)
    objects = [tagged.objects[old] for old in order]
    return dataclasses.replace(tagged, objects=objects, pairs=[Pair(*values) for values in moved])


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(4)), group_size=st.sampled_from([2, 100]))
def test_the_order_of_boxes_changes_the_order_of_relations_and_nothing_else(
    folder: Path, order: list[int], group_size: int
) -> None:
    def confidences(one: Record) -> list[tuple[str, str, str, float]]:
        [tagged] = stage(folder, group_size=group_size)([one])
        ends = values_of(tagged.relations, "subject", "object")
        assert ends == sorted(ends)
        boxes = list(map(str, tagged.objects))
        return sorted(
            (boxes[r.subject], r.predicate, boxes[r.object], r.confidence) for r in tagged.relations
        )

    assert confidences(in_order(record(0), order)) == confidences(record(0))


def test_the_image_and_each_text_are_encoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger = stage(folder, group_size=1)
    images = encoded(tagger)
    tagger([record(0)])
    assert len(images) == 1
    monkeypatch.delattr(tagger.tagger._label_cache, "tokenizer")  # not needed once more
    assert all(values_of(tagger([record(1), record(2)]), "relations"))


def test_unreadable_images_become_error_rows_if_there_is_something_to_score(folder: Path) -> None:
    failed = record(0)
    wordless = record(1, [Pair(0, 1, [])])
    unasked = record(2, [])
    absent, free, good = map(record, (3, 0, 1))
    failed.fail("caption", "no")
    unasked.file_name = absent.file_name = "absent.png"
    free.objects[0].category = "zebra"  # of no dataset
    results = stage(folder)([failed, wordless, unasked, absent, free, good])
    assert values_of(results, "image_id") == ["0", "1", "2", "3", "0", "1"]
    assert values_of(results, "ok") == [False, True, True, False, True, True]
    assert absent.error.startswith("tag: image file not found")
    assert failed.error == "caption: no"
    assert [bool(item.relations) for item in results] == [False] * 4 + [True] * 2


def test_only_confidences_of_at_least_the_threshold(folder: Path) -> None:
    [everything] = stage(folder)([record(0)])
    middle = sorted(values_of(everything.relations, "confidence"))[3]
    [fewer] = stage(folder, threshold=middle)([record(0)])
    assert fewer.relations == [item for item in everything.relations if item.confidence >= middle]
    assert len(fewer.relations) == len(everything.relations) - 3


def test_with_a_calibration_the_threshold_is_a_probability(folder: Path, tmp_path: Path) -> None:
    scored = stage(folder, threshold=0.0)([record(0)])[0].relations
    tagger = scoring_of_recipe(stage(folder).config, PairConfig())
    file = make_calibration(tmp_path / "c.json", tagger, offset=-1.0)
    half = load_calibration(file).threshold(0.5)
    assert half == pytest.approx(1 / (1 + math.exp(-1)))
    relations = stage(folder, calibration=file, threshold=0.5)([record(0)])[0].relations
    assert relations == [item for item in scored if item.confidence >= half]
    assert stage(folder, calibration=file, precision=0.8).threshold == half
    with pytest.raises(UserError, match=r"precision 0\.99: .*no threshold has this precision"):
        stage(folder, calibration=file, precision=0.99)
    other = make_calibration(tmp_path / "o.json", tagger | {"short_side": 7})
    with pytest.raises(UserError, match="short_side: 7 in the calibration, "):
        stage(folder, calibration=other)
    with pytest.raises(UserError, match="precision needs a calibration"):
        stage(folder, precision=0.9)


def test_own_batches_join_groups_with_equal_predicates() -> None:
    pairs = [Pair(i, 9, ["b", "a"] if i < 5 else ["c"]) for i in range(8)] + [Pair(0, 1, [])]
    mixed = Batch([[(4, 9), (5, 9)]], ["a", "b", "c"])
    expected = [
        Batch([[(0, 9), (1, 9)], [(2, 9), (3, 9)]], ["a", "b"]),
        mixed,
        Batch([[(6, 9), (7, 9)]], ["c"]),
    ]
    assert own_batches(pairs, size=2, chunk=16) == expected
    assert [len(batch.groups) for batch in own_batches(pairs[:5], size=1, chunk=2)] == [2, 2, 1]


def candidates(index: int, pairs: Sequence[Pair] = CANDIDATES) -> Record:
    return dataclasses.replace(
        record(index, copy.deepcopy([*pairs])), objects=copy.deepcopy(OBJECTS)
    )


def scored(folder: Path, **changes: object) -> ScoredStage:
    settings = {"method": "clip", "tagger": str(folder / "clip"), "threshold": 0.0, **changes}
    stage = ScoredStage(TagConfig.model_validate(settings), {"val": folder})
    stage.check()
    stage.setup()
    return stage


def test_all_candidates_are_relations_with_confidence_1() -> None:
    stage = AssumedStage(TagConfig(method="all", threshold=0.9))
    failed = candidates(1)
    failed.fail("caption", "no")
    [tagged, bare, _] = stage([candidates(0), candidates(9, []), failed])
    assert (stated(tagged), failed.relations) == (ALL, [])
    assert set(values_of(tagged.relations, "confidence")) == {1.0}
    assert (bare.ok, bare.relations) == (True, [])


def test_overlapping_boxes_share_some_area() -> None:
    moved = candidates(0)
    moved.objects[1] = Box("dog", 1, (49, 20, 30, 30))
    [tagged, nearer] = AssumedStage(TagConfig(method="overlap"))([candidates(0), moved])
    assert stated(tagged) == [(0, 2, "sitting on")]
    assert stated(nearer) == [(0, 1, "holding"), (0, 1, "next to"), (0, 2, "sitting on")]


def test_a_scorer_keeps_what_has_at_least_the_threshold(folder: Path) -> None:
    [tagged] = scored(folder)([candidates(0)])
    assert tagged.ok
    assert stated(tagged) == [relation for relation in ALL if relation[1] != 3], (
        "a cup without area is not seen"
    )
    minimum = sorted(values_of(tagged.relations, "confidence"))[2]
    [fewer] = scored(folder, threshold=minimum)([candidates(0)])
    assert fewer.relations == [item for item in tagged.relations if item.confidence >= minimum]


def test_a_scorer_gives_the_same_confidences_whatever_is_beside(folder: Path) -> None:
    together = scored(folder)([candidates(0), candidates(1), candidates(2)])
    for index in range(3):
        assert scored(folder)([candidates(index)])[0] == together[index]
    [reversed_] = scored(folder)([candidates(1, CANDIDATES[::-1])])
    assert set(values_of(reversed_.relations, "confidence")) == set(
        values_of(together[1].relations, "confidence")
    )


def test_what_cannot_be_scored_is_an_error_row(folder: Path) -> None:
    stage = scored(folder)
    missing, broken = stage([candidates(7), candidates(0)])
    assert missing.error.startswith("tag: image file not found")
    assert broken.ok
    stage.tagger.scores = lambda image, record, relations: [
        0.5,
        *[Refusal("too long")] * (len(relations) - 1),
    ]
    [refused] = stage([candidates(0)])
    assert (refused.error, refused.relations) == ("tag: too long", [])


def test_what_a_method_needs_and_those_without_a_model_do_not() -> None:
    served = {"method": "clip", "tagger": "a/b", "endpoint": "http://localhost:1/v1"}
    for values in ({}, {"method": "clip"}, served, {"method": "all", "precision": 0.9}):
        with pytest.raises(UserError):
            check_tagger(TagConfig.model_validate(values))
    for method in ("all", "overlap"):
        check_tagger(TagConfig(method=method, tagger="./no/such/folder"), PairConfig())
        assert (
            "confidence 1" in recipe_notes(Recipe(tag=TagConfig(method=method)), detects=False)[0]
        )
    check_tagger(TagConfig(method="vlm", tagger="any/name/there", endpoint="http://localhost:1/v1"))
    with pytest.raises(UserError, match=r"pair\.restrict=group is for rtagger"):
        check_tagger(TagConfig(method="all"), PairConfig(restrict="group"))
    with pytest.raises(UserError, match=r"tag\.questions=shared is for vlm"):
        check_tagger(TagConfig(method="clip", tagger="a", questions="shared"))
    assert recipe_notes(Recipe(tag=TagConfig(tagger="a")), detects=False) == []


def test_a_calibration_is_of_the_same_method_and_model(folder: Path, tmp_path: Path) -> None:
    config = TagConfig(method="clip", tagger=str(folder / "clip"))
    scoring = scoring_of_recipe(config, PairConfig())
    calibration = make_calibration(tmp_path / "own.json", scoring)
    scored(folder, calibration=str(calibration), threshold=0.5)
    other = scoring_of_recipe(config.model_copy(update={"method": "vlm"}), PairConfig())
    with pytest.raises(UserError, match="does not fit the model"):
        scored(
            folder, calibration=str(make_calibration(tmp_path / "other.json", other)), threshold=0.5
        )
    served = TagConfig(method="vlm", tagger="a", endpoint="http://localhost:1/v1")
    shared = served.model_copy(update={"questions": "shared"})
    differing = scoring_of_recipe(shared, PairConfig())
    assert differing == scoring_of_recipe(served, PairConfig()) | {"questions": "shared"}
    assert "method" not in scoring_of_recipe(TagConfig(tagger="a"), PairConfig()), (
        "as earlier versions wrote it"
    )
