"""The files of a split: deterministic, and readable without problems."""

import json
from itertools import count
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.images import open_row_image
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.dataset import file_name, image_id, render_dataset
from sgpipe.miniworld.relations import SPLITS, Statement
from sgpipe.records import from_table
from sgpipe.sources.coco import read_coco
from sgpipe.sources.vocabulary import category_names
from sgpipe.stages.matching import HeadMatcher
from sgpipe.stages.pair import read_prior
from tests.values import values_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each split."""
    root = tmp_path_factory.mktemp("world")
    for split in SPLITS:
        render_dataset(root / split, 10, 3, split)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def load(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def statements(folder: Path) -> set[Statement]:
    stated = set()
    for graph in load(folder, "scene_graphs.json"):
        names = dict(values_of(graph["objects"], "object_id", "names"))
        for relation in graph["relationships"]:
            stated.add(
                (names[relation["subject_id"]], relation["predicate"], names[relation["object_id"]])
            )
    return stated


def test_the_same_numbers_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path, 10, 3, "val")
    assert contents(tmp_path) == contents(world / "val")
    render_dataset(tmp_path / "other", 10, 4, "val")
    folders = (tmp_path / "other", world / "val", world / "train")
    assert (
        len({image for folder in folders for image in contents(folder / "images").values()}) == 30
    )


def test_fewer_images_are_a_prefix(world: Path, tmp_path: Path) -> None:
    render_dataset(tmp_path, 5, 3, "train")
    all_files = contents(world / "train" / "images")
    assert contents(tmp_path / "images") == {
        name: all_files[name] for name in (file_name("train", n) for n in range(5))
    }
    first = {image_id("train", number) for number in range(5)}
    for name in ("instances.json", "captions.json"):
        items = load(world / "train", name)["annotations"]
        assert load(tmp_path, name)["annotations"] == [
            item for item in items if item["image_id"] in first
        ]
    assert load(tmp_path, "scene_graphs.json") == load(world / "train", "scene_graphs.json")[:5]


@pytest.mark.parametrize("split", SPLITS)
def test_the_coco_reader_reports_no_problem(world: Path, split: str) -> None:
    folder = world / split
    detections, _ = read_coco(
        folder / "instances.json", folder / "captions.json", dataset="coco", split=split
    )
    records = [record for table in detections.tables() for record in from_table(table)]
    assert (detections.problems.total(), len(records)) == (0, 10)
    for record in records:
        assert record.ok
        assert 1 <= len(record.captions) <= 5
        open_row_image({split: folder / "images"}, record)
    boxes = [len(record.objects) for record in records]
    assert min(boxes) > 0
    assert sum(boxes) == len(load(folder, "instances.json")["annotations"])


@pytest.mark.parametrize("split", SPLITS)
def test_scene_graphs_have_the_boxes_of_the_instances_and_relations_between_them(
    world: Path, split: str
) -> None:
    names = category_names("coco")
    instances = load(world / split, "instances.json")["annotations"]
    expected = {
        item["id"]: (item["image_id"], names[item["category_id"]], *item["bbox"])
        for item in instances
    }
    stated = {}
    for graph in load(world / split, "scene_graphs.json"):
        keys = ("names", "x", "y", "w", "h")
        boxes_of_image = {
            item["object_id"]: (graph["image_id"], *map(item.get, keys))
            for item in graph["objects"]
        }
        stated |= boxes_of_image
        ends = {
            relation[end]
            for relation in graph["relationships"]
            for end in ("subject_id", "object_id")
        }
        assert set() < ends <= boxes_of_image.keys()
    assert stated == expected


def test_scene_graphs_are_a_prior(world: Path) -> None:
    prior = read_prior(world / "val" / "scene_graphs.json", HeadMatcher({}, KINDS))
    assert {(s, p, o) for (s, o), predicates in prior.items() for p in predicates} == statements(
        world / "val"
    )


def test_an_interrupted_dataset_is_not_there_and_the_same_call_renders_it(
    world: Path, tmp_path: Path
) -> None:
    drawn = count(1)

    def interrupt() -> None:
        if next(drawn) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_dataset(tmp_path / "set", 10, 3, "val", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".set.tmp/images").mkdir(parents=True)  # of a killed call
    assert render_dataset(tmp_path / "set", 10, 3, "val")
    assert contents(tmp_path) == {
        f"set/{name}": content for name, content in contents(world / "val").items()
    }


def test_another_set_is_refused_and_a_complete_one_left_alone(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (world / "val").rglob("*")}
    for other in ((11, 3, "val"), (9, 3, "val"), (10, 4, "val"), (10, 3, "train")):
        with pytest.raises(
            UserError, match=r"another set .* \({.images.: 10, .seed.: 3, .split.: .val.}\)"
        ):
            render_dataset(world / "val", *other)
    assert not render_dataset(world / "val", 10, 3, "val")
    assert {path: path.stat().st_mtime_ns for path in (world / "val").rglob("*")} == before


def test_invalid_arguments_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for place, images, seed, split, message in (
        ("new", 10**7, 0, "val", "at most 1,000,000"),
        (".", 1, 0, "val", "is not overwritten"), ("thesis.txt", 1, 0, "val", "is not overwritten"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            render_dataset(tmp_path / place, images, seed, split)
    assert values_of(tmp_path.iterdir(), "name") == ["thesis.txt"]


def test_a_full_disk_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        render_dataset(tmp_path / "new", 1, 0)
    assert str(caught.value.filename).endswith("images/2000000.jpg")
    assert list(tmp_path.iterdir()) == []
