"""The search index: built once, rebuilt when the run changes, without what is damaged."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sgpipe.records import Record
from sgpipe.storage import index as index_module
from sgpipe.storage import index_build
from sgpipe.storage.index import Index, find_image, read_embedded, read_record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import RunFiles
from sgpipe.storage.shards import CLIP_SCORE, VLM_SCORE, read_file, shard_name, write_shard
from sgpipe.utils.console import Progress
from sgpipe.utils.database import configure, interruptible
from sgpipe.view import search as search_module
from sgpipe.view.search import Filters, queues, search
from tests.sgpipe.training.data.runs import make_records, make_run, plain_record
from tests.values import values_of

QUIET = Progress(Console(quiet=True))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[RunFiles]:
    """The runs of which indexes are built."""
    built = list[RunFiles]()
    build = index_module.build_index
    monkeypatch.setattr(
        index_module,
        "build_index",
        lambda *arguments: (built.append(arguments[0]), build(*arguments))[1],
    )
    return built


def add(root: Path, records: list[Record], start: int, revision: int = 0) -> None:
    """Commit a shard."""
    name = shard_name("train", start, start + len(records), revision)
    Manifest.load(root).commit(write_shard(root, name, "train", start, records, {}))


def newer(index: Index) -> Index:
    successor = index.newer()
    assert successor is not None
    return successor


def content(index: Index) -> list[object]:
    """All that can be found, whatever the numbers of images."""
    names = (
        "subject, object, predicate, subject_category, object_category, certainty, annotated, bin, "
        "clip_score, vlm_score"
    )
    queries = (
        f"""select i.image_id, i.split, number, {names}, lot, times, r.flags from run.relations r
        join (select image, image_id, split from run.images) i using (image) join
        (select triplet, times from run.triplets) using (triplet)""",
        "select image_id, split, file, row, status, error, why, flags, objects, relations from run.images "
        "join run.shards using (shard)",
        "select image_id, caption from run.captions join run.images using (image)",
        """select image_id, number, category, x, y, w, h from run.images join run.objects on
        objects.rowid >= first_object and objects.rowid < first_object + images.objects
        and objects.image = images.image""",
        "select * exclude (triplet) from run.triplets", "from run.predicates", "from run.categories",
    )  # fmt: skip
    return [sorted(index.rows(query), key=str) for query in queries]


def test_an_index_is_built_once_and_again_if_it_is_damaged(
    tmp_path: Path, builds: list[RunFiles]
) -> None:
    make_run(tmp_path, make_records(12))
    first = Index(tmp_path, QUIET)
    second = Index(tmp_path, QUIET)
    assert content(first) == content(second)
    assert first.newer() is None
    assert len(builds) == 1
    [path] = (tmp_path / ".sgpipe/cache").glob("index*")
    assert path.suffix == ".duckdb"
    path.write_bytes(b"no database")
    assert content(Index(tmp_path, QUIET)) == content(first)
    assert len(builds) == 2


def test_a_grown_index_is_as_a_new_one(tmp_path: Path, builds: list[RunFiles]) -> None:
    records = make_records(24, seed=3)
    make_run(tmp_path / "growing", records[:8], rows=4)
    index = Index(tmp_path / "growing", QUIET)
    for start in (8, 16):
        add(tmp_path / "growing", records[start : start + 8], start)
        index = newer(index)
    make_run(tmp_path / "new", [], rows=4)
    for start, stop in ((0, 4), (4, 8), (8, 16), (16, 24)):
        add(tmp_path / "new", records[start:stop], start)
    assert content(index) == content(Index(tmp_path / "new", QUIET))
    assert len(builds) == 4
    assert (index.images, index.problems) == (24, [])


@pytest.mark.parametrize("rows", [1, 5, 9])
def test_an_index_is_the_same_however_many_rows_are_in_memory_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    make_run(tmp_path, make_records(24, seed=3), rows=4)
    expected = content(Index(tmp_path, QUIET))
    shutil.rmtree(tmp_path / ".sgpipe/cache")
    monkeypatch.setattr(index_build, "_ROWS", rows)
    assert content(Index(tmp_path, QUIET)) == expected


def test_the_first_page_is_the_start_of_all_relations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, make_records(24, seed=3), rows=4)
    index = Index(tmp_path, QUIET)
    page = search(index, Filters(), limit=5)
    monkeypatch.setattr(search_module, "MOST_CERTAIN", 0)
    assert search(index, Filters(), limit=5) == page


def test_rows_that_were_processed_again_replace_the_earlier_ones(tmp_path: Path) -> None:
    make_run(tmp_path, [plain_record(str(number), "on") for number in range(6)], rows=3)
    index = Index(tmp_path, QUIET)
    add(tmp_path, [plain_record(str(number), "under") for number in range(3)], 0, revision=1)
    index = newer(index)
    predicates = dict(values_of(search(index, Filters())[0], "image_id", "predicate"))
    assert predicates == dict.fromkeys("012", "under") | dict.fromkeys("345", "on")
    assert index.vocabulary.predicates == ("on", "under")


@pytest.mark.parametrize("damage", ["missing", "cut", "overwritten"])
def test_a_damaged_shard_is_named_and_the_rest_is_shown(tmp_path: Path, damage: str) -> None:
    make_run(tmp_path, [plain_record(str(number), "on") for number in range(9)], rows=3)
    shard = tmp_path / shard_name("train", 3, 6)
    data_bytes = shard.read_bytes()
    shard.write_bytes(
        data_bytes[:-20] if damage == "cut" else data_bytes[:4] + bytes(1996) + data_bytes[2000:]
    )
    if damage == "missing":
        shard.unlink()
    index = Index(tmp_path, QUIET)
    [problem] = index.problems
    assert shard_name("train", 3, 6) in problem
    assert set(values_of(search(index, Filters())[0], "image_id")) == set("012678")
    assert read_record(index, "train", "4") is None
    shard.write_bytes(data_bytes)
    index = newer(index)
    assert (index.images, index.problems) == (9, [])


def test_values_beyond_their_types_leave_out_a_shard_or_find_no_box(tmp_path: Path) -> None:
    records = [plain_record(str(number), "on") for number in range(4)]
    records[3].relations[0].subject = 2**31 - 1
    make_run(tmp_path, records, rows=2)
    path = tmp_path / shard_name("train", 0, 2)
    table = read_file(path)
    wide = pa.array([2**40] * 2)
    pq.write_table(table.set_column(table.schema.get_field_index("width"), "width", wide), path)
    index = Index(tmp_path, QUIET)
    [problem] = index.problems
    assert path.name in problem
    assert values_of(search(index, Filters())[0], "image_id", "subject_category") == [
        ("2", "person"),
        ("3", None),
    ]


def test_what_cannot_be_put_into_the_run_goes_into_the_users_cache(tmp_path: Path) -> None:
    make_run(tmp_path / "run", make_records(5))
    shutil.rmtree(tmp_path / "run/.sgpipe", ignore_errors=True)
    # as a file system that cannot be written, for root too
    (tmp_path / "run/.sgpipe").write_text("a file")
    index = Index(tmp_path / "run", QUIET)
    assert index.files.cache.is_relative_to(tmp_path / "cache")
    assert index.images == 5


def test_folders_may_have_names_that_mean_something_to_duckdb(tmp_path: Path) -> None:
    for name in ("a?b=c", "a[b]*", "it's"):
        make_run(tmp_path / name, make_records(5))
        assert Index(tmp_path / name, QUIET).images == 5


def test_two_servers_build_one_index(tmp_path: Path, builds: list[RunFiles]) -> None:
    make_run(tmp_path, make_records(10))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: Index(tmp_path, QUIET), range(2))
    assert content(first) == content(second)
    assert len(builds) == 1


def test_rows_are_read_from_their_shards(tmp_path: Path) -> None:
    records = make_records(11, seed=4)
    make_run(tmp_path, records, rows=4)
    index = Index(tmp_path, QUIET)
    for number, record in enumerate(records):
        view = read_record(index, "train", record.image_id)
        assert view is not None
        assert dataclasses.replace(view.record, relations=[]) == dataclasses.replace(
            record, relations=[]
        )
        start = number // 4 * 4
        assert (view.image.shard, view.image.row) == (
            shard_name("train", start, min(start + 4, 11)),
            number % 4,
        )
        assert not view.scores
        row = find_image(index, "train", record.image_id)
        assert row is not None
        assert (row.file_name, row.width, row.height, row.embedded) == (
            record.file_name,
            24,
            16,
            False,
        )
    assert read_record(index, "val", records[0].image_id) is None
    assert read_embedded(index, "train", records[0].image_id) is None
    assert index.image_roots.locations["train"] == str(tmp_path / "images")


def test_images_in_shards_are_read(tmp_path: Path) -> None:
    make_run(tmp_path, list(map(plain_record, "abc")), embedded=True)
    index = Index(tmp_path, QUIET)
    data = [read_embedded(index, "train", name) for name in "abc"]
    assert all(data)
    assert read_embedded(index, "train", "d") is None


def scored(root: Path, name: str, scores: pa.Array) -> Index:
    """The index of a run whose images have one relation each."""
    make_run(root, [plain_record(str(number)) for number in range(len(scores))], rows=len(scores))
    path = root / Manifest.load(root).shards[0].file
    pq.write_table(read_file(path).append_column(name, scores), path)
    return Index(root, QUIET)


def test_a_scored_run_is_ordered_by_clip_score_though_cosines_may_be_negative(
    tmp_path: Path,
) -> None:
    cosines = [number / 100 - 0.1 for number in range(20)]
    scores = [[{"score": cosine, "swapped": 0.0, "rank": 1, "contrasts": 2}] for cosine in cosines]
    index = scored(tmp_path, CLIP_SCORE, pa.array(scores))
    order = Filters(order="clip_score")
    first, after = search(index, order, limit=6)
    second, _ = search(index, order, after, limit=6)
    assert values_of(first + second, "clip_score") == pytest.approx(cosines[:12])


def test_vlm_scores_order_relations_and_list_those_that_they_doubt(tmp_path: Path) -> None:
    scores = [[0.9], [0.2], [None], [0.6], [0.4], [0.5]]
    index = scored(tmp_path, VLM_SCORE, pa.array(scores, pa.list_(pa.float32())))
    assert (index.has_vlm_scores, index.scored) == (True, False)
    hits = search(index, Filters(order="vlm_score"))[0]
    assert values_of(hits, "vlm_score") == pytest.approx([0.2, 0.4, 0.5, 0.6, 0.9, None])
    [queue] = [queue for queue in queues(index) if queue.key == "low_vlm_score"]
    assert queue.count == 2
    doubted = search(index, Filters(queue="low_vlm_score", order="vlm_score"))[0]
    assert values_of(doubted, "image_id") == ["1", "4"]
    add(tmp_path, [plain_record("6")], 6)
    index = newer(index)
    assert values_of(search(index, Filters(order="vlm_score"))[0][-2:], "vlm_score") == [
        None,
        None,
    ]
    other = Index(tmp_path, QUIET)
    assert content(other) == content(index)


def test_an_interrupted_query_interrupts_the_program() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise RuntimeError("Query interrupted")  # as DuckDB says it
    with pytest.raises(RuntimeError, match="else"), interruptible():
        raise RuntimeError("something else")


@pytest.mark.filterwarnings("ignore:Arrow output")
def test_arrow_keeps_the_order_of_a_query_where_its_connection_is_ordered(tmp_path: Path) -> None:
    """Without `ordered`, DuckDB 2.0.1 gave 20 of 20 such tables in another order; `fetchall` and
    `sql` none.
    """
    with duckdb.connect() as database:
        configure(database, tmp_path, ordered=True)
        database.execute("set threads = 2")
        database.execute(
            "create table t as select hash(i) % 1000000 as a, i from range(600000) r(i)"
        )
        values = (
            database.execute("select a, max(i) from t group by 1 order by 1")
            .to_arrow_table()["a"]
            .to_numpy()
        )
        assert (values[1:] >= values[:-1]).all()
    package = Path(index_module.__file__).parents[1]
    reads = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if ".to_arrow_" in path.read_text()
    }
    # whose connections are ordered; certify.py sorts by itself
    assert reads == {"files/listing.py", "generation/merging.py"}
