import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from sgpipe.calibration import scoring_of_run
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.generation import merging
from sgpipe.generation.merging import merge_runs
from sgpipe.records import Caption, Record, Relation
from sgpipe.sources.corrected import correct_run
from sgpipe.storage.index import Index
from sgpipe.storage.judgements import JudgementLog
from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.run_records import iter_records, iter_tables
from sgpipe.storage.shards import SOURCES, embedded_images, write_shard
from sgpipe.storage.verify import verify
from sgpipe.view.search import Filters, search
from tests.integration.faults.test_run_machine import POINTS, at_point
from tests.sgpipe.generation.merged_scenes import SIDE, detected, person, scene
from tests.sgpipe.generation.test_uniting import records
from tests.sgpipe.sources import test_corrected
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.training.data.runs import cut_shards
from tests.values import values_of


def make_run(
    root: Path,
    records: Sequence[Record],
    rows: int = 3,
    images: Any = "/nowhere",
    embedded: Any = False,
    **header: object,
) -> Path:
    folder = RunFolder(root)
    header = {"name": root.name, "identity": {"import": root.name}, **header}
    with folder.lock():
        manifest = folder.open(
            {**header, "images": {record.split: str(images) for record in records}}
        )
        for shard in cut_shards(records, rows):
            image_bytes = embedded if isinstance(embedded, bytes) else None
            files = (
                [image_bytes or record.file_name.encode() for record in shard[-1]]
                if embedded
                else None
            )
            manifest.commit(write_shard(root, *shard, {}, files))
    return root


def merged(out: Path, *runs: Path, **options: object) -> list[Record]:
    merge_runs(runs, out, QUIET, **options)
    assert verify(out).problems == []
    return list(iter_records(out))


def shards(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "data").iterdir()}


runs = st.sets(st.integers(0, 4), min_size=1, max_size=4).flatmap(
    lambda names: st.tuples(*(records(str(name)) for name in sorted(names)))
)


@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(runs, runs, runs)
@pytest.mark.slow
def test_the_result_depends_on_which_runs_there_are_alone(first, second, third):
    """A ∪ B = B ∪ A, A ∪ B ∪ A = A ∪ B, and (A ∪ B) ∪ C = A ∪ (B ∪ C) = A ∪ B ∪ C, bit for bit,
    whatever the boxes.
    """
    with TemporaryDirectory() as folder:
        root = Path(folder)
        a, b, c = (
            make_run(root / name, run_records)
            for name, run_records in zip("abc", (first, second, third), strict=True)
        )
        ab = merged(root / "ab", a, b)
        assert merged(root / "aba", a, b, a) == ab
        assert merged(root / "ba", b, a) == ab
        abc = merged(root / "abc", a, b, c)
        merged(root / "bc", b, c)
        assert merged(root / "ab c", root / "ab", c) == merged(root / "a bc", a, root / "bc") == abc
        assert merged(root / "again", root / "abc", c, root / "ab") == abc
        assert shards(root / "ab c") == shards(root / "abc")


def test_images_are_matched_by_file_id_or_content(tmp_path):
    draw = {
        name: Image.new("RGB", (SIDE, SIDE), colour)
        for name, colour in {"a": "red", "b": "blue"}.items()
    }
    # the same names for other images
    for place, names in {
        "one": ("a", "b"),
        "two": ("b", "a"),
    }.items():
        (tmp_path / place).mkdir()
        for name, file in zip("01", names, strict=True):
            draw[file].save(tmp_path / place / f"{name}.png")
    scenes = [scene("0", person()), scene("1", person(50))]
    renamed = [
        replace(scenes[1], image_id="0", file_name="0.png"),
        replace(scenes[0], image_id="1", file_name="1.png"),
    ]
    one = make_run(tmp_path / "first", scenes, images=tmp_path / "one")
    two = make_run(tmp_path / "second", renamed, images=tmp_path / "two")
    assert [
        len(record.objects) for record in merged(tmp_path / "hash", one, two, match="hash")
    ] == [
        1,
        1,
    ]
    assert [len(record.objects) for record in merged(tmp_path / "id", one, two, match="id")] == [
        2,
        2,
    ]
    apart = merged(tmp_path / "file", one, two)
    assert values_of(apart, "split", "image_id") == [
        (s, n) for s in ("train", "train_2") for n in "01"
    ]
    run = Manifest.load(tmp_path / "file").run
    assert run["matched"] == {
        "images": 4,
        "shared": 0,
        "different": 2,
        "replaced": 0,
        "failed": 0,
        "unread": 0,
    }
    assert run["images"] == {"train": str(tmp_path / "one"), "train_2": str(tmp_path / "two")}
    second = CliRunner().invoke(app, ["merge", str(one), str(two), "--out", str(tmp_path / "file")])
    assert f"NOTE: split train_2 has the images in {tmp_path / 'two'}" in second.stderr
    # one place: one file of a name
    moved = merged(tmp_path / "moved", one, two, images=tmp_path / "one")
    assert [len(record.objects) for record in moved] == [2, 2]
    embedded = [
        make_run(tmp_path / f"e{n}", run_records, embedded=True)
        for n, run_records in enumerate((scenes, renamed))
    ]
    assert len(merged(tmp_path / "embedded", *embedded, match="hash")) == 2
    [table] = iter_tables(tmp_path / "embedded")
    assert embedded_images(table) == [b"0.png", b"1.png"]


def test_images_of_shards_may_be_larger_than_the_memory_of_the_database(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "_MEMORY", "30MB")
    image = os.urandom(2 << 20)
    scenes = [[scene(str(n), box) for n in range(20)] for box in (person(), detected(11))]
    runs = [
        make_run(tmp_path / str(n), run_scenes, rows=5, embedded=image)
        for n, run_scenes in enumerate(scenes)
    ]
    assert len(merged(tmp_path / "out", *runs)) == 20
    assert all(
        embedded_images(table) == [image] * len(table) for table in iter_tables(tmp_path / "out")
    )


def test_images_that_are_not_one_stay_apart(tmp_path):
    """Of another size; of one name in two splits of a run; of one id. What is in one run alone
    stays as it is.
    """
    one = [
        scene("0", person()),
        scene("1", person()),
        scene("x", file_name="val/0.png"),
        scene("2", split="val"),
    ]
    one += [scene("3")]
    other = [scene("0", detected(), width=50), scene("1", detected(), split="val")]
    other += [scene("1", detected(50), dataset="folder"), scene("0", file_name="elsewhere/0.png")]
    run_folders = [make_run(tmp_path / "one", one), make_run(tmp_path / "other", other)]
    rows = {
        (record.split, record.image_id): record for record in merged(tmp_path / "out", *run_folders)
    }
    assert len(rows) == 8
    assert rows["train", "1"].objects == [person(), detected(50)]
    assert rows["val", "1"] == other[1]
    assert rows["val", "2"] == one[3]
    assert rows["train", "x"] == one[2]
    zeros = [row for (split, name), row in rows.items() if name == "0"]
    assert sorted(values_of(zeros, "split")) == ["train", "train_2", "train_3"]
    matched = Manifest.load(tmp_path / "out").run["matched"]
    assert matched == {
        "images": 8,
        "shared": 1,
        "different": 1,
        "replaced": 0,
        "failed": 0,
        "unread": 0,
    }


@pytest.mark.parametrize("match", ["file", "id", "hash"])
def test_an_error_row_counts_only_where_no_run_has_the_image(tmp_path, match):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(images / "0.png")
    failed = scene("0", width=0)
    lost = scene("1")
    good = scene("0", person())
    failed.fail("load", "truncated")
    lost.fail("load", "missing")
    records = {"one": [failed, lost], "two": [good, replace(lost, error="tag: x")]}
    runs = [make_run(tmp_path / name, rows, images=images) for name, rows in records.items()]
    first, second = merged(tmp_path / "out", *runs, match=match)
    assert first == good
    assert (second.image_id, second.split, second.ok) == ("1", "train", False)
    assert merged(tmp_path / "again", tmp_path / "out", *runs, match=match) == [first, second]
    matched = Manifest.load(tmp_path / "out").run["matched"]
    assert (matched["replaced"], matched["failed"]) == (1, 1)
    stderr = (
        CliRunner()
        .invoke(app, ["merge", *map(str, runs), "--match", match, "--out", str(tmp_path / "out")])
        .stderr
    )
    assert "1 error row left out, as another run has the image" in stderr
    assert "1 error row kept, as no run has the image" in stderr


def test_a_run_counts_once(tmp_path, two):
    copied = shutil.copytree(two[0], tmp_path / "copied")
    once = merged(tmp_path / "once", *two)
    result = CliRunner().invoke(
        app, ["merge", *map(str, [two[0], copied, two[1]]), "--out", str(tmp_path / "out")]
    )
    assert f"NOTE: {copied} is the same run as {two[0]}, and counts once" in result.stderr
    assert list(iter_records(tmp_path / "out")) == once


def test_a_row_keeps_the_rows_of_single_runs_and_the_header_says_what_these_are(tmp_path):
    labels = [{"objects": ["person", name], "relations": ["on"]} for name in ("dog", "cup")]
    first = [scene("0", person())]
    second = [scene("0", detected(11)), scene("1")]
    one = make_run(tmp_path / "one", first, labels=labels[0], origin=[{"import": "vg"}])
    two = make_run(tmp_path / "two", second, labels=labels[1])
    merged(tmp_path / "out", one, two)
    open_list = make_run(tmp_path / "open", [scene("2", person(category="zebra"))])
    merged(tmp_path / "more", open_list, one, two)
    assert (
        Manifest.load(tmp_path / "more").run["labels"]
        == Manifest.load(tmp_path / "out").run["labels"]
    )
    run = Manifest.load(tmp_path / "out").run
    names = {number: entry["name"] for number, entry in run["runs"].items()}
    [table] = iter_tables(tmp_path / "out")
    sources = table[SOURCES].to_pylist()
    assert {names[source["run"]]: source["objects"][0]["bbox"][0] for source in sources[0]} == {
        "one": 10,
        "two": 11,
    }
    assert [(names[source["run"]], source["objects"]) for source in sources[1]] == [("two", None)]
    # the larger run first
    assert run["labels"] == {
        "objects": ["person", "cup", "dog"],
        "relations": ["on"],
    }
    assert sorted(values_of(run["origin"], "import")) == ["one", "two", "vg"]


def test_a_calibration_is_of_one_tagger(tmp_path):
    taggers = [{"tag": {"method": "rtagger", "tagger": name}, "pair": {}} for name in ("x", "y")]
    one, two, equal = (
        make_run(tmp_path / name, [scene(name)], identity={"import": name}, origin=[tagger])
        for name, tagger in zip("abc", [*taggers, taggers[0]], strict=True)
    )
    merged(tmp_path / "alike", one, equal)
    assert scoring_of_run(Manifest.load(tmp_path / "alike").run) == scoring_of_run(
        Manifest.load(one).run
    )
    merged(tmp_path / "mixed", one, two)
    mixed = Manifest.load(tmp_path / "mixed").run
    assert scoring_of_run(mixed) == {"run": mixed["fingerprint"]}


def test_a_corrected_copy_of_a_merged_run_is_merged_as_it_is(tmp_path, monkeypatch):
    relation = Relation(0, 1, "on", 0.5, "tagger")
    record = scene("0", person(), person(50, category="dog"), relations=[relation])
    one = make_run(tmp_path / "one", [record])
    two = make_run(tmp_path / "two", [scene("0", person())])
    merged(tmp_path / "out", one, two)
    corrected = correct(tmp_path / "out", tmp_path / "corrected", monkeypatch, (0, 1, "on"))
    [row] = merged(tmp_path / "again", corrected, two)
    assert row.relations == []
    assert len(row.objects) == 2
    manifest = merge_runs([corrected, tmp_path / "out"], tmp_path / "back", QUIET)
    assert add_up(manifest, 0, {}).counts["merged.returned_relations"] == 1


def correct(
    run: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *wrong: tuple[int, int, str]
) -> Path:
    """Copy a run without these relations of its first image."""
    source = Manifest.load(run)
    monkeypatch.setattr(test_corrected, "RUN", source.run["fingerprint"])
    for relation in wrong:
        test_corrected.judge(run, "0", relation, **test_corrected.change("delete"))
    log = JudgementLog(run / "judgements.jsonl", source.run["fingerprint"])
    correct_run(source, run, log, out, QUIET)
    return out


def predicates(record: Record) -> list[str]:
    return sorted(values_of(record.relations, "predicate"))


def test_a_preferred_run_keeps_its_relations_alone_and_what_comes_back_is_counted(
    tmp_path, monkeypatch
):
    """Of its own images; the objects of all runs are united. A later merge keeps what was
    preferred.
    """
    two = (person(), person(50, category="dog"))
    labelled = [Relation(0, 1, "on", 0.5, "tagger"), Relation(0, 1, "near", 0.5, "tagger")]
    original = make_run(
        tmp_path / "original", [scene("0", *two, relations=labelled), scene("1", *two)]
    )
    other_rows = [
        scene(
            "0", *two, person(80, category="cup"), relations=[Relation(1, 0, "behind", 0.5, "clip")]
        )
    ]
    other_rows.append(scene("2", *two, relations=[Relation(0, 1, "under", 0.5, "clip")]))
    other = make_run(tmp_path / "other", other_rows)
    corrected = correct(original, tmp_path / "corrected", monkeypatch, (0, 1, "on"))

    def merge(name: str, *runs: Path, prefer: Path | None = None) -> tuple[list[Record], str]:
        options = [] if prefer is None else ["--prefer", str(prefer)]
        result = CliRunner().invoke(
            app, ["merge", *map(str, runs), *options, "--out", str(tmp_path / name)]
        )
        assert result.exit_code == 0, result.output
        return list(iter_records(tmp_path / name)), result.stderr.replace("\n", " ")

    rows, notes = merge("back", corrected, original, other)
    assert predicates(rows[0]) == ["behind", "near", "on"]
    assert "1 relation that a corrected run has no more" in notes
    assert "--prefer CORRECTED" in notes
    rows, notes = merge("preferred", corrected, original, other, prefer=corrected)
    assert list(map(predicates, rows)) == [["near"], [], ["under"]]
    assert len(rows[0].objects) == 3
    assert "2 relations of other runs left out, as the preferred run has the image" in notes
    assert "has no more" not in notes

    merge("first", corrected, original, prefer=corrected)
    rows, _ = merge("later", tmp_path / "first", other)
    # `other` was not overruled then
    assert list(map(predicates, rows)) == [
        ["behind", "near"],
        [],
        ["under"],
    ]
    rows, _ = merge("reversed", tmp_path / "first", original, prefer=original)
    assert predicates(rows[0]) == ["near", "on"]
    refused = CliRunner().invoke(
        app,
        [
            "merge",
            str(corrected),
            str(original),
            "--prefer",
            str(other),
            "--out",
            str(tmp_path / "x"),
        ],
    )
    assert (refused.exit_code, "is not one of the runs" in refused.stderr) == (2, True)


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two runs of 40 images in many shards, of which 30 are the same ones."""
    dog = person(50, category="dog")
    on = [Relation(0, 1, "on")]
    given_scenes = [
        scene(f"{n:02}", person(n), dog, relations=on, captions=[Caption("a man")])
        for n in range(40)
    ]
    detected_scenes = [
        scene(
            f"{n:02}",
            detected(n + 1),
            detected(51, category="dog"),
            relations=[Relation(0, 1, "on", 0.5, "tagger")],
        )
        for n in range(49, 9, -1)
    ]
    return [
        make_run(tmp_path / "given", given_scenes),
        make_run(tmp_path / "found", detected_scenes),
    ]


def test_the_output_is_an_ordinary_run(tmp_path, two):
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["merge", *map(str, two), "--out", out])
    assert done.stdout.startswith(
        f"{out}: 50 images, 30 of them in several runs (by file); 60 united "
    ), done.output
    assert json.loads(CliRunner().invoke(app, ["stats", out, "--json"]).stdout)["images"] == {
        "train": 50
    }
    export_run(out, "coco-rel", tmp_path / "coco-rel", origins=["tagger"])
    train = json.loads((tmp_path / "coco-rel/rel.json").read_text())["train"]
    assert sum(map(len, train.values())) == 40
    index = Index(out)
    filters = Filters.from_params([("q", "-origin:tagger")], index.vocabulary)
    assert len(search(index, filters, limit=1000)[0]) == 10
    assert "annotated+tagger" in {
        relation.origin for record in iter_records(out) for relation in record.relations
    }
    second = CliRunner().invoke(app, ["merge", *map(str, reversed(two)), "--out", out, "--json"])
    assert "nothing left to do" in second.stderr
    values = {"images": 50, "shared": 30, "different": 0, "replaced": 0, "failed": 0, "unread": 0}
    values |= dict.fromkeys(merging.UNITED, 0) | {"united_objects": 60, "united_relations": 30}
    assert json.loads(second.stdout) == {"root": out, "shards": 1, **values}
    other = make_run(tmp_path / "x", [scene("x")])
    alone = CliRunner().invoke(app, ["merge", str(two[0]), str(other), "--out", out + "2"])
    assert "NOTE: no image is in two runs" in alone.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["given", "--out", "out"], "merge needs two runs or more"),
        (["given", "given", "--out", "out"], "all of these are the same run as given"),
        (["given", "found", "--out", "given"], "is read by this command"),
        (["given", "nothing", "--out", "out"], "does not exist"),
        (["given", "old", "--out", "out"], "has schema version 2"),
        (["given", "cut", "--out", "out"], "cannot be read"),
        (["given", "embedded", "--out", "out"], "embed the images of all runs or of none"),
        (["given", "found", "--out", "found2"], "contains an import, not a merged run"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, two, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "found2", [scene("0")])
    make_run(tmp_path / "embedded", [scene("0")], embedded=True)
    Manifest.create(make_run(tmp_path / "old", [scene("0")]), {"schema_version": 2, "name": "old"})
    [file] = (make_run(tmp_path / "cut", [scene("0")]) / "data").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    result = CliRunner().invoke(app, ["merge", *arguments])
    assert (result.exit_code, reason in result.stderr) == (2, True), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_merge_that_stopped_is_resumed_and_a_lost_shard_made_again(tmp_path, two, monkeypatch):
    """At any step of a commit."""
    monkeypatch.setattr(merging, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(merging, "_PLAN", merging._PLAN.replace("// 512", "// 4"))
    write = merging.write_copy
    written = list[str]()
    monkeypatch.setattr(
        merging,
        "write_copy",
        lambda *arguments: (written.append(arguments[1].file), write(*arguments))[1],
    )
    expected = merged(tmp_path / "whole", *two)
    out = tmp_path / "out"

    def stop() -> None:
        raise KeyboardInterrupt

    for point in POINTS:
        with pytest.raises(KeyboardInterrupt), at_point(point, 2, stop):
            merge_runs(two, out, QUIET)
    left = len(shards(tmp_path / "whole")) - len(Manifest.load(out).shards)
    assert left == 13 - len(POINTS) - 1  # the last step is that after a commit
    with pytest.raises(UserError, match="match: 'file' then, 'id' now"):
        merged(out, *two, match="id")
    written.clear()
    assert merged(out, *reversed(two)) == expected
    assert len(written) == left
    assert not (out / ".sgpipe/merging").exists()
    lost = sorted((out / "data").iterdir())[2]
    lost.unlink()
    written.clear()
    assert merged(out, *two) == expected
    assert written == [f"data/{lost.name}"]
    assert shards(out) == shards(tmp_path / "whole")


@pytest.mark.slow
def test_processes_write_the_same_files(tmp_path, two, monkeypatch):
    monkeypatch.setattr(merging, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(merging, "_PLAN", merging._PLAN.replace("// 512", "// 4"))
    merge_runs(two, tmp_path / "one", QUIET)
    merge_runs(two, tmp_path / "processes", QUIET, workers=2)
    assert shards(tmp_path / "processes") == shards(tmp_path / "one")
    manifests = [Manifest.load(tmp_path / name) for name in ("one", "processes")]
    assert [manifest.shards for manifest in manifests[1:]] == [manifests[0].shards]
    assert manifests[0].run == manifests[1].run
