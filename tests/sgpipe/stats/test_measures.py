import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sgpipe.calibration import choose_threshold
from sgpipe.errors import UserError
from sgpipe.records import Attribute, Pair, Triplet
from sgpipe.stats.measures import measure, measure_long_tail
from sgpipe.stats.tables import overview
from sgpipe.storage.index import Index
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.stats.runs import CUP, DOG, PERSON, labelled_records, make_shards, scene
from tests.values import values_of


def column(rows: pa.Table, noun: str, field: str) -> pa.Array:
    return pc.struct_field(pc.list_flatten(rows[noun]), field)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("measures") / "run", labelled_records(150), rows=40)


@pytest.fixture(scope="module")
def rows(root):
    """The shards as pyarrow reads them, past everything that is tested."""
    return pa.concat_tables(
        [pq.read_table(root / shard.file) for shard in Manifest.load(root).shards]
    )


def test_totals_are_what_pyarrow_counts(root, rows):
    measures = measure(root)
    for noun in ("objects", "captions", "triplets", "pairs", "relations"):
        assert measures.totals[noun] == (pc.sum(pc.list_value_length(rows[noun])).as_py() or 0)
    assert measures.images == Counter(rows["split"].to_pylist())
    assert measures.datasets == Counter(rows["dataset"].to_pylist())
    assert sum(measures.errors.values()) == rows["status"].to_pylist().count("error")
    assert (
        measures.totals["distinct_captions"]
        == pc.count_distinct(column(rows, "captions", "text")).as_py()
    )
    different = sum(
        len(set(values_of(captions, "text"))) for captions in rows["captions"].to_pylist()
    )
    assert measures.totals["different_captions"] == different
    assert measures.totals["candidate_texts"] == len(
        pc.list_flatten(column(rows, "pairs", "predicates"))
    )
    ends = [
        pc.is_valid(column(rows, "triplets", f"{end}_category")) for end in ("subject", "object")
    ]
    assert measures.totals["matched_triplets"] == (pc.sum(pc.and_(*ends)).as_py() or 0)
    assert measures.predicates == Counter(column(rows, "relations", "predicate").to_pylist())
    assert measures.categories == Counter(column(rows, "objects", "category").to_pylist())
    assert list(measures.predicates.values()) == sorted(measures.predicates.values(), reverse=True)


def test_thresholds_keep_what_numpy_counts(root, rows):
    owner = pc.list_parent_indices(rows["relations"].combine_chunks()).to_numpy()
    confidence = pc.fill_null(column(rows, "relations", "confidence"), 1).to_numpy()
    names = np.array(column(rows, "relations", "predicate").to_pylist())
    pairs = np.stack(
        [owner, *(column(rows, "relations", end).to_numpy() for end in ("subject", "object"))]
    )
    levels = {level.threshold: level for level in measure(root).thresholds}
    assert list(levels) == [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6]
    for threshold, level in levels.items():
        is_kept = confidence >= np.float32(threshold)
        assert level.relations == is_kept.sum()
        assert level.images == len(np.unique(owner[is_kept]))
        assert level.pairs == len(np.unique(pairs[:, is_kept], axis=1).T)
        assert level.predicate_kinds == len(np.unique(names[is_kept]))
        if level.relations:
            assert level.per_image == pytest.approx(is_kept.sum() / level.images)
            assert level.per_pair == pytest.approx(is_kept.sum() / level.pairs)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -0.1])
def test_a_threshold_is_a_number_from_0_to_1(root, threshold):
    with pytest.raises(UserError, match="expected a number from 0 to 1"):
        measure(root, threshold)
    with pytest.raises(UserError, match="expected a number from 0 to 1"):
        choose_threshold(None, threshold)


def test_confidences_triplets_and_relations_per_image(root, rows):
    measures = measure(root)
    scores = column(rows, "relations", "confidence")
    confidences = np.array([score for score in scores.to_pylist() if score is not None])
    bins, _ = np.histogram(confidences, 20, (0, 1))
    assert measures.confidence.histogram == bins.tolist()
    assert (measures.confidence.scored, measures.confidence.unscored) == (
        len(confidences),
        scores.null_count,
    )
    assert measures.confidence.mean == pytest.approx(confidences.mean())
    assert measures.confidence.highest == confidences.max()
    counted = Counter()
    for record in rows.filter(pc.equal(rows["status"], "ok")).to_pylist():
        for r in record["relations"]:
            ends = [record["objects"][r[end]]["category"] for end in ("subject", "object")]
            counted[ends[0], r["predicate"], ends[1]] += 1
    assert measures.triplet_kinds == len(counted)
    assert all(counted[t.subject, t.predicate, t.object] == t.relations for t in measures.triplets)
    assert sum(measures.person_subject_share * n for n in counted.values()) == pytest.approx(
        sum(n for (subject, *_), n in counted.items() if subject == "person")
    )
    lengths = pc.list_value_length(
        rows.filter(pc.equal(rows["status"], "ok"))["relations"]
    ).to_numpy()
    assert measures.totals["images_without_relations"] == (lengths == 0).sum()


def test_images_without_relations_say_what_they_lack(tmp_path):
    lacking = {
        "no objects": {"objects": []}, "no captions": {"captions": []},
        "no triplet in the captions": {"triplets": []},
        "no triplet matches the objects": {"triplets": [Triplet("a", "on", "b", "a", "b", "on", 0, "dog", None)]},
        "no candidate pair": {"pairs": []}, "tagging kept no candidate": {},
    }  # fmt: skip
    complete = scene("", captions=["a dog on a cup"])
    complete.triplets = [Triplet("a dog", "on", "a cup", "dog", "cup", "on", 0, "dog", "cup")]
    complete.pairs = [Pair(0, 1, ["on"])]
    records = [
        replace(complete, image_id=str(n), **changes) for n, changes in enumerate(lacking.values())
    ]
    without_relations = measure(make_shards(tmp_path / "run", records)).without_relations
    assert without_relations == dict.fromkeys(lacking, 1)
    imported = make_shards(tmp_path / "imported", [scene("0"), scene("1")])
    assert measure(imported).without_relations == {"nothing annotated": 2}


def test_attributes_count_once_for_each_object(tmp_path):
    dog, cup = (replace(box, attributes=[]) for box in (DOG, CUP))
    dog.attributes = [Attribute("wet", 0), Attribute("wet", 1), Attribute("two", 0)]
    cup.attributes = [Attribute("wet")]
    broken = scene("2", objects=[dog])
    broken.fail("tag", "broken")
    measures = measure(
        make_shards(tmp_path / "run", [scene("0", objects=[PERSON, dog, cup]), scene("1"), broken])
    )
    assert measures.attributes == {"wet": 3, "two": 2}
    assert (measures.totals["described_objects"], measures.in_error_rows["described_objects"]) == (
        3,
        1,
    )
    assert ("boxes with attributes", "3", "43% of the boxes") in overview(measures)


def test_errors_are_told_apart_by_kind_not_by_image(tmp_path):
    records = [scene(str(number)) for number in range(5)]
    records[3].file_name = ""
    sizes = [
        "image is 12x13, the annotation says 640x480",
        "image is 14x15, the annotation says 320x240",
    ]
    errors = [*(f"image file not found: a folder/{number}.jpg" for number in range(3)), *sizes]
    for record, error in zip(records, errors, strict=True):
        record.fail("load", error)
    measures = measure(make_shards(tmp_path / "run", records))
    lost = "load: image file not found: a …"
    scaled = "load: image is N, the annotation says N"
    assert (measures.errors, measures.error_examples) == (
        {lost: 3, scaled: 2},
        {lost: "0.png", scaled: "3"},
    )


def test_a_run_without_shards_and_one_that_is_damaged(tmp_path):
    make_shards(tmp_path / "empty", [])
    measures = measure(tmp_path / "empty")
    assert measures.rows == measures.totals["relations"] == 0
    make_shards(tmp_path / "run", [scene(str(n), [(0, "on", 1)]) for n in range(50)], rows=50)
    [shard] = (tmp_path / "run" / "data").iterdir()
    content = bytearray(shard.read_bytes())
    content[4:2000] = bytes(1996)  # the pages, not the footer
    shard.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        measure(tmp_path / "run")


def test_yields_leave_out_what_no_stage_has_finished(tmp_path):
    """The captions of an image that could not be read were never parsed."""
    triplet = Triplet("a man", "on", "a dog", "man", "dog", "on", 0, "person", "dog")
    records = [scene(str(n), [(0, "on", 1, 0.9)] * 3, captions=["a", "b"]) for n in range(4)]
    for record in records:
        record.triplets = [triplet] * 4
        record.pairs = [Pair(0, 1, ["on"] * 5)]
    for record in records[1:]:
        record.fail("caption", "no image")
        record.triplets = []
        record.pairs = []
        record.relations = []
    measures = measure(make_shards(tmp_path / "run", records))
    assert measures.totals["captions"] == 8
    assert measures.in_error_rows["captions"] == 6
    assert measures.yields == {
        "triplets": 2, "matched_triplets": 1, "candidate_texts": 5 / 4, "relations": 3 / 5, "kept_relations": 1,
    }  # fmt: skip
    assert ("captions", "8", "6 in error rows") in overview(measures)
    for record in records:
        record.fail("caption", "no image")
    assert set(measure(make_shards(tmp_path / "failed", records)).yields.values()) == {None}


def test_the_long_tail_of_equal_counts_and_of_one_that_has_nearly_everything():
    tail = measure_long_tail([7] * 16)
    assert (tail.kinds, tail.half) == (16, 8)
    assert (tail.gini, tail.entropy) == pytest.approx((0, 4))
    assert tail.head_share == pytest.approx(10 / 16)
    assert measure_long_tail([]).kinds == 0
    tail = measure_long_tail([1, 1, 1, 997])
    # mean difference of all pairs, over twice the mean
    assert tail.gini == pytest.approx(6 * 996 / 16 / (2 * 250))
    assert (tail.half, tail.singletons) == (1, 3)
    assert tail.entropy < 0.05


@pytest.fixture
def queries(monkeypatch):
    """The queries that the index answers."""
    answered = []
    answer = Index.rows

    def rows(index, query, values=()):
        answered.append(query)
        return answer(index, query, values)

    monkeypatch.setattr(Index, "rows", rows)
    return answered


def test_sums_are_computed_once(tmp_path, queries):
    root = make_shards(tmp_path / "run", labelled_records(60), rows=20)
    measures = measure(root, 0.3)
    assert any("related_pairs" in query for query in queries)
    queries.clear()
    assert measure(root, 0.3) == measures
    assert not any("from relations" in query for query in queries)
    other_threshold = measure(root, 0.5)
    for file in (root / ".sgpipe/cache").glob("*.sums.json"):
        file.write_bytes(b"{damaged")
    assert measure(root, 0.5) == other_threshold


def test_sums_of_a_grown_run_are_new(tmp_path):
    records = labelled_records(60)
    root = make_shards(tmp_path / "run", records[:20], rows=20)
    measure(root)
    grown = make_shards(tmp_path / "grown", records, rows=20)
    shutil.copytree(grown, root, dirs_exist_ok=True)
    assert measure(root) == measure(grown)
    assert len(list((root / ".sgpipe/cache").glob("*.sums.json"))) == 1
