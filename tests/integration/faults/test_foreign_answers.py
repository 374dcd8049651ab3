"""A store, or a proxy before it, that answers with other bytes of the right length: once, or always.

Once is a warning and the right result; always is damage, which is named as such after a second reading.
"""

import os
import zipfile
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files import locations, model_cache
from sgpipe.files.image_roots import IndexFolder, existing_images
from sgpipe.files.locations import DamagedError
from sgpipe.files.object_store import StorePath
from sgpipe.recipe import SourceConfig
from sgpipe.sources.opening import open_source
from sgpipe.storage.index import Index
from sgpipe.storage.mirror import fetch
from sgpipe.training.data.scan import scan_training
from sgpipe.training.data.stream import StepStream
from sgpipe.training.recipe import ShardsConfig
from tests.integration.faults.conftest import Faults, upload
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import SECONDS
from tests.integration.faults.stub import COPIES
from tests.sgpipe.stats.runs import make_shards, scene
from tests.sgpipe.training.data.runs import data, make_records, make_run

ALWAYS = 10**6
READ_AGAIN = pytest.mark.filterwarnings("ignore:.*answered with other bytes once")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def foreign(faults: Faults) -> Callable[[str, int], list[int]]:
    """Let so many answers to reading requests whose path has a word in it be foreign; "" is a listing."""

    def set_fault(word: str, times: int) -> list[int]:
        left = [times]

        def fault(method: str, path: str) -> str | None:
            hit = method == "GET" and (word in path if word else path.count("/") < 3)
            left[0] -= hit
            return "foreign" if hit and left[0] >= 0 else None

        faults.fault = fault
        return left

    return set_fault


@pytest.fixture
def run(tmp_path: Path, store: StorePath) -> Path:
    root = make_shards(tmp_path / "run", [scene(str(n), [(0, "on", 1, 0.2 + n / 200)]) for n in range(120)], rows=50)
    upload(root, store)
    return root


COMMANDS = ("verify PLACE", "stats PLACE --json", "fetch PLACE --out OUT", "export PLACE --to coco-rel --out OUT")


def sgpipe(command: str, place: object, out: Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, command.replace("PLACE", str(place)).replace("OUT", str(out)).split())
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.exit_code, done.stdout.replace("\n", "").replace(str(out), ""), done.stderr.replace("\n", " ")


@READ_AGAIN
@pytest.mark.parametrize("whole", [True, False], ids=["read whole", "read in ranges"])
@pytest.mark.parametrize("etags", ["MD5", "of another kind"])
def test_one_foreign_answer_changes_no_result(
    run: Path,
    store: StorePath,
    tmp_path: Path,
    foreign: Callable[[str, int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
    etags: str,
) -> None:
    monkeypatch.setattr(locations, "_WHOLE", 1 << 20 if whole else 0)
    if etags != "MD5":
        monkeypatch.setattr(StorePath, "_md5", lambda self, tag: None)
    for number, command in enumerate(COMMANDS):
        expected = sgpipe(command, store.uri, tmp_path / f"expected-{number}")
        for word in ("data/", "manifest.jsonl", ""):
            monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / f"cache-{number}-{word[:4]}"))
            left = foreign(word, 1)
            code, out, _ = sgpipe(command, store.uri, tmp_path / f"{number}-{word[:4]}")
            foreign("", 0)
            assert (code, out) == (0, expected[1]), (command, word)
            assert left[0] < 1 or (word == "" and not command.startswith("stats"))
            for path in (tmp_path / f"expected-{number}").rglob("*"):
                found = tmp_path / f"{number}-{word[:4]}" / path.relative_to(tmp_path / f"expected-{number}")
                assert not path.is_file() or path.parent.name == ".sgpipe" or found.read_bytes() == path.read_bytes()


def test_damage_is_told_from_an_answer(
    run: Path,
    store: StorePath,
    tmp_path: Path,
    foreign: Callable[[str, int], list[int]],
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever deletes a good shard, or repairs a good run, does so because of a wrong message."""
    foreign("data/", 1)
    with pytest.warns(UserWarning, match=r"data/.*: the store answered with other bytes once"):
        fetch(store, tmp_path / "fetched", lambda images, counts: None)
    foreign("data/", ALWAYS)
    code, out, err = sgpipe(COMMANDS[0], store.uri, tmp_path)
    assert (code, out.count("read twice")) == (1, 3)
    for command, expected in zip(COMMANDS[1:], (2, 1, 2), strict=True):
        code, _, err = sgpipe(command, store.uri, tmp_path / f"out-{expected}-{command[:5]}")
        assert (code, "read twice" in err, "repair" in err) == (expected, True, False), err
    foreign("manifest.jsonl", ALWAYS)
    for command in COMMANDS:
        code, _, err = sgpipe(command, store.uri, tmp_path / f"out2-{command[:5]}")
        assert (code, "read twice" in err) == (2, True), err

    foreign("", 0)  # and whole objects are not damaged for longer than the answers were
    assert [sgpipe(command, store.uri, tmp_path / f"out3-{command[:5]}")[0] for command in COMMANDS] == [0] * 4

    monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / "empty"))
    other = iter(range(ALWAYS))
    faults.fault = lambda method, path: f"foreign {next(other)}" if "data/" in path and method == "GET" else None
    for command in COMMANDS[:3]:  # a different answer each time is not the object's damage
        code, _, err = sgpipe(command, store.uri, tmp_path / f"out4-{command[:5]}")
        assert (code, "answered differently each time" in err) == (1, True), (command, err)


@READ_AGAIN
def test_the_viewer_and_a_training_read_again(
    tmp_path: Path, store: StorePath, foreign: Callable[[str, int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", make_records(40), rows=3, embedded=True)
    upload(tmp_path / "run", store)

    def steps() -> list[object]:
        settings = data(ShardsConfig(shards=store.uri), val=())
        stream = StepStream(scan_training(settings), settings, batch=2, seed=7, most_relations=5)
        with closing(stream.steps(0, 0)) as found:
            return [[(item.image_id, item.graph, item.embedded) for item in step.items] for step in islice(found, 7)]

    expected = steps()
    monkeypatch.setattr(StorePath, "_md5", lambda self, tag: None)
    for whole in (1 << 20, 0):
        monkeypatch.setattr(locations, "_WHOLE", whole)
        for skipped in range(3):
            foreign("data/", 1)
            assert steps() == expected, (whole, skipped)
            assert Index.open(store.uri).problems == []


@READ_AGAIN
def test_models_images_and_annotations_are_read_again(
    tmp_path: Path, store: StorePath, foreign: Callable[[str, int], list[int]]
) -> None:
    (store / "model").put("config.json", b"{}")
    (store / "model").put("model.safetensors", b"weights" * 1000)
    expected = model_cache.pin_model(f"{store.uri}/model")
    for word in ("config.json", "model.safetensors", ""):
        os.environ["SGPIPE_CACHE"] = str(tmp_path / f"cache-{word}")
        foreign(word, 1)
        assert model_cache.pin_model(f"{store.uri}/model") == expected

    for number in range(8):
        Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / f"{number}.png")
        store.put(f"images/{number}.png", tmp_path / f"{number}.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.write(tmp_path / f"{number}.png", f"{number}.png")
    store.put("images.zip", tmp_path / "images.zip")
    for place in ("images", "images.zip"):
        for reading in (False, True):
            os.environ["SGPIPE_CACHE"] = str(tmp_path / f"cache-{place}-{reading}")
            if not reading:
                foreign(place if "." in place else "", 1)
            root = existing_images(f"{store.uri}/{place}", IndexFolder())
            if reading:
                foreign(place, 1)
            file = root.open("3.png")
            assert not isinstance(file, Path)
            assert file.read() == (tmp_path / "3.png").read_bytes(), (place, reading)
            foreign("", 0)

    dataset = make_dataset(tmp_path / "data", 12)
    store.put("a_val.json", Path(dataset[1]))
    settings = {"annotations": f"{store.uri}/a_val.json", "images": tmp_path / "data"}
    source = SourceConfig.model_validate({"format": "coco", "splits": {"val": settings}})
    foreign("a_val.json", 1)
    assert len(open_source(source, "val", tmp_path / "index.arrow")) == 12
    foreign("a_val.json", ALWAYS)
    with pytest.raises(DamagedError, match=r"a_val\.json is .*read twice"):
        open_source(source, "val", tmp_path / "other.arrow")


def test_a_stored_image_index_that_is_damaged_is_named(
    tmp_path: Path, store: StorePath, foreign: Callable[[str, int], list[int]]
) -> None:
    store.put("images/1.png", b"image")
    existing_images(f"{store.uri}/images", IndexFolder(tmp_path / "private", f"{store.uri}/run", whole=True))
    [index] = (tmp_path / "private").glob("images-*.arrow")
    store.put(f"run/.sgpipe/{index.name}", index)
    reference = IndexFolder(tmp_path / "elsewhere", f"{store.uri}/run").reference(None)
    moved = type(reference)(tmp_path / "elsewhere" / index.name, f"{store.uri}/run")
    foreign(index.name, ALWAYS)
    with pytest.raises(DamagedError, match=r"images-.*read twice"):
        _ = moved.opened
    assert not moved.exists


@pytest.mark.slow
@READ_AGAIN
def test_a_run_resumes_over_foreign_answers(
    store: StorePath, tmp_path: Path, foreign: Callable[[str, int], list[int]]
) -> None:
    """None of them makes it lose, repeat or refuse its work; a source index that stays damaged is named."""
    dataset = make_dataset(tmp_path / "data", 24)
    options = ("--set", "engine.unit_size=1", "--set", "engine.cpus=2", "--set", "engine.kind=local")
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    whole = Run(dataset, tmp_path / "whole", options)
    whole.start()
    assert whole.wait() == 0, whole.said
    options += ("--store", store.uri)
    for number, word in enumerate(("manifest.jsonl", "index-val.arrow", "index-val.json", ".sgpipe/writer", "")):
        place = f"{store.uri}/{number}"
        options = (*options[:-1], place)
        run = Run(dataset, tmp_path / f"killed{number}", options, {SECONDS: "0.1", COPIES: "0.1", **keys})
        run.start()
        assert run.wait_for(lambda run=run: run.committed > 4), run.said
        run.process.kill()
        run.process.join()
        foreign(word, 1)
        run.environment = keys
        run.start()
        assert run.wait() == 0, (word, run.said)
        assert "regenerating" not in run.said, (word, run.said)
        foreign("", 0)
        fetch(StorePath(place), tmp_path / f"fetched{number}", lambda images, counts: None)
        assert_whole(tmp_path / f"fetched{number}", rows(whole.out))
    options = (*options[:-1], f"{store.uri}/last")
    run = Run(dataset, tmp_path / "damaged", options, {SECONDS: "0.1", COPIES: "0.1", **keys})
    run.start()
    assert run.wait_for(lambda: run.committed > 4), run.said
    run.process.kill()
    run.process.join()
    foreign("index-val.arrow", ALWAYS)
    run.start()
    assert run.wait() == 2
    assert "read twice" in run.said, run.said
    assert "Traceback" not in run.said, run.said
