import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.records import Record
from sgpipe.sources import import_run
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.visual_genome import visual_genome_source
from sgpipe.storage.manifest import Manifest, Summary
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import read_file
from sgpipe.utils.console import Progress
from tests.values import values_of

QUIET = Progress(Console(quiet=True))
IMAGES = 1100  # three shards


def graph(number: int) -> dict:
    """A 90 x 60 image with a box to clip, a box without area inside it, and a relation to each."""
    boxes = [(0, 0, 30, 30), (80, 10, 30, 30), (95, 0, 5, 5)]
    objects = [
        {"object_id": i, "x": x, "y": y, "w": w, "h": h, "names": ["dog"]}
        for i, (x, y, w, h) in enumerate(boxes)
    ]
    relationships = [
        {"predicate": f"p{number % 7}", "subject_id": 0, "object_id": i} for i in (1, 2)
    ]
    size = {} if number in (3, 700) else {"width": 90, "height": 60}
    return {"image_id": number, "objects": objects, "relationships": relationships, **size}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    """Images 3 and 700 have neither a size nor a file; item 600 is not an image; image 5 is there
    twice.
    """
    folder = tmp_path_factory.mktemp("vg")
    (folder / "images").mkdir()
    items = list(map(graph, range(IMAGES)))
    (folder / "scene_graphs_val.json").write_text(
        json.dumps([*items[:600], None, *items[600:], {"no": "id"}, items[5]])
    )
    return folder / "scene_graphs_val.json"


def run(
    annotations: Path, out: Path, images: Path | None = None, preprocess: bool = True, **options
) -> Summary:
    images = images or annotations.parent / "images"
    source = visual_genome_source(annotations, images, "val", preprocess=preprocess)
    return import_annotations(source, images, out, QUIET, **options)


@pytest.fixture(scope="module")
def finished(annotations, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    run(annotations, out)
    return out


def rows(out: Path) -> list[Record]:
    return list(iter_records(out))


def test_the_manifest_has_what_training_needs(finished, annotations, tmp_path, oracle):
    assert Manifest.load(finished).run["images"] == {"val": str(annotations.parent / "images")}
    assert Manifest.load(finished).run["labels"] is None
    source = hico_source(oracle / "data/hicodet/test_hico_sample300.qpic_format.json", "test")
    import_annotations(source, tmp_path, tmp_path / "out", QUIET, limit=1)
    labels = Manifest.load(tmp_path / "out").run["labels"]
    assert (len(labels["objects"]), len(labels["relations"])) == (80, 117)
    assert (labels["objects"][0], labels["relations"][57]) == ("person", "no interaction")


def test_the_summary_counts_rows_and_problems(annotations, tmp_path):
    summary = run(annotations, tmp_path / "out")
    assert summary.complete
    assert summary.counts["images"] == summary.planned == IMAGES
    good = IMAGES - 2
    assert (summary.counts["errors"], summary.counts["relations"], summary.counts["boxes"]) == (
        2,
        good,
        2 * good,
    )
    expected = {
        "malformed": 2,
        "clipped": good,
        "degenerate": good,
        "relations_of_dropped_boxes": good,
    }
    expected["duplicate_images"] = 1
    assert summary.problems == expected
    files = [*tmp_path.glob("out/data/*"), tmp_path / "out/manifest.jsonl"]
    before = [path.stat().st_mtime_ns for path in files]
    # a finished import changes nothing
    assert run(annotations, tmp_path / "out").problems == expected
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize("at", [0, 2])
def test_a_killed_import_resumes(finished, annotations, tmp_path, monkeypatch, at):
    """Killed after a shard was renamed into place, before it was committed to the manifest."""
    written = []
    out = tmp_path / "out"
    write_shard = import_run.write_shard

    def write_and_die(*arguments):
        written.append(write_shard(*arguments))
        if len(written) > at:
            raise KeyboardInterrupt
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(import_run, "write_shard", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(annotations, out)
    assert len(Manifest.load(out).shards) == at
    assert run(annotations, out).problems == run(annotations, finished).problems
    assert rows(out) == rows(finished)
    first, second = (values_of(Manifest.load(root).shards, "sha256") for root in (out, finished))
    assert first == second


def test_another_import_is_refused(finished, annotations, tmp_path):
    with pytest.raises(
        UserError, match=r"made with other settings.*\n  options.preprocess: True then, False now"
    ):
        run(annotations, finished, preprocess=False)
    with pytest.raises(UserError, match="embed: False then, True now"):
        run(annotations, finished, embed=True)
    other = tmp_path / "scene_graphs_val.json"
    other.write_text(json.dumps([graph(1)]))
    with pytest.raises(UserError, match=r"files\.annotations: "):
        run(other, finished, annotations.parent / "images")
    assert len(rows(finished)) == IMAGES


def test_a_limit_can_be_raised_and_lost_shards_are_imported_again(finished, annotations, tmp_path):
    out = tmp_path / "out"
    assert run(annotations, out, limit=100).counts["images"] == 100
    assert run(annotations, out, limit=700).counts["images"] == 700
    run(annotations, out)
    assert rows(out) == rows(finished)
    assert values_of(Manifest.load(out).shards, "start") == [0, 100, 612, 700]
    first, second, *_ = (out / shard.file for shard in Manifest.load(out).shards)
    first.unlink()
    os.truncate(second, 100)
    run(annotations, out)
    assert rows(out) == rows(finished)
    assert len(list(out.glob("data/*"))) == 4


def test_error_rows_are_retried_on_request(annotations, tmp_path):
    images = tmp_path / "images"
    out = tmp_path / "out"
    images.mkdir()
    run(annotations, out, images)
    Image.new("RGB", (90, 60)).save(images / "3.jpg")
    assert run(annotations, out, images).counts["errors"] == 2
    summary = run(annotations, out, images, retry_failed=True)
    assert (summary.counts["errors"], summary.counts["images"]) == (1, IMAGES)
    row = rows(out)[3]
    assert (row.status, row.width, row.height, len(row.relations)) == ("ok", 90, 60, 1)
    assert len(list(out.glob("data/*"))) == 3


def test_embedded_images_make_shards_self_contained(annotations, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        Image.new("RGB", (90, 60) if number != 2 else (60, 90), (number, 0, 0)).save(
            images / f"{number}.jpg"
        )
    out = tmp_path / "out"
    run(annotations, out, images, embed=True, limit=5)
    table = read_file(out / Manifest.load(out).shards[0].file)
    files = [(images / f"{number}.jpg").read_bytes() for number in range(4)]
    assert [image and image["bytes"] for image in table["image"].to_pylist()] == [
        *files[:2],
        None,
        files[3],
        None,
    ]
    assert table["image"][1]["path"].as_py() == "1.jpg"
    errors = values_of(rows(out), "error")
    assert errors[:2] == [None, None]
    assert "is 60x90, the annotation says 90x60" in errors[2]
    assert "image file not found" in errors[4]


def test_a_finished_import_says_so_without_reading_its_source_again(tmp_path):
    (tmp_path / "graphs.json").write_text(
        json.dumps([graph(1) | {"image_id": number} for number in range(24)])
    )
    source = visual_genome_source(tmp_path / "graphs.json", tmp_path, "val")
    text = io.StringIO()
    reads = []
    progress = Progress(Console(file=text, width=300))

    def run(limit: int | None = None) -> int:
        counted = replace(
            source, read=lambda problems: reads.append(limit) or source.read(problems)
        )
        return import_annotations(
            counted, tmp_path, tmp_path / "out", progress, limit=limit
        ).counts["images"]

    assert run(20) == 20
    assert (run(20), run(10)) == (20, 20)
    assert text.getvalue().splitlines()[-1].endswith("imported before")
    assert (run(), run(), run(30)) == (24, 24, 24)
    assert reads == [20, None]
    manifest = Manifest.load(tmp_path / "out")
    manifest.run["finished"] = False  # as a repair does: how many there were is no longer known
    manifest.rewrite(manifest.shards[-1:])
    assert run() == 24
    assert reads == [20, None, None]
    with pytest.raises(UserError, match="contains no image"):
        import_annotations(
            replace(source, read=lambda problems: iter(())), tmp_path, tmp_path / "none", QUIET
        )
