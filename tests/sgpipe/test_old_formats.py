"""What sgpipe 0.1.0 wrote still opens, and the command that wrote it goes on from it.

Everything goes through the command line, as it did then; see tests/data/written_by_0_1/README.md.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import spacy.util
from safetensors.torch import load_file

from rlip_model.model import RTagger
from sgpipe.cli.main import main
from sgpipe.recipe import packaged_model
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.hashing import fingerprint, model_sha256

ROOT = str(Path(__file__).parents[2])
WRITTEN = Path(ROOT) / "tests" / "data" / "written_by_0_1"
SMALL_IMAGES = ("--set", "tag.short_side=96", "--set", "tag.long_side=144")
MODELS = ("--detector", "MINIWORLD", "--captioner", "MINIWORLD", "--tagger", "MINIWORLD")
CLASSES = (
    "person, bicycle, car, bench, bird, cat, dog, horse, umbrella, sports ball, kite, skateboard, cup, chair, "
    "dining table"
)
DETECTION = ("--set", f"detect.classes=[{CLASSES}]", "--set", "detect.threshold=0.3", "--set", "detect.overlap=0.3")
IMAGES = ("--images", "drawn/images")
TEXTS = ("--annotations", "drawn/instances.json", "--captions", "drawn/captions.json")
GENERATE: dict[str, tuple[str, ...]] = {
    "run": ("miniworld", "--set", "source.drawn.images=6", "--set", "caption.samples=3"),
    "run-coco": ("coco", *IMAGES, *TEXTS, "--tagger", "MINIWORLD", *SMALL_IMAGES),
    "run-folder": ("folder", *IMAGES, *MODELS, *DETECTION, "--set", "caption.samples=3", *SMALL_IMAGES),
}
LABELED = {"run": 4, "run-coco": 2, "run-folder": 2}
IMPORT = ("import", "vg", "--annotations", "drawn/scene_graphs.json", *IMAGES, "--split", "train", "--out", "import")
ALL = [*GENERATE, "import"]
STEPS = 2  # of the training, an epoch

Sgpipe = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, as the working folder: in another place than where it was written."""
    shutil.copytree(WRITTEN, tmp_path / "moved", symlinks=True)
    manifest = Manifest.load(tmp_path / "moved" / "run-folder")
    manifest.run["identity"]["detect"]["detector"] = model_sha256(str(packaged_model("parseda")))  # trained again since
    manifest.run["fingerprint"] = fingerprint(manifest.run["identity"])
    manifest.rewrite()
    monkeypatch.chdir(tmp_path / "moved")
    return tmp_path / "moved"


@pytest.fixture
def sgpipe(written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sgpipe:
    """Runs a command in the copy, which has to succeed, and returns what it prints."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sgpipe", *arguments])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which, as the next, is restored afterwards
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code in (0, None), printed.err
        return printed.out

    return run


def in_a_process(*arguments: str) -> str:
    """The same for commands that start Ray."""
    python = (sys.executable, "-c", "from sgpipe.cli.main import main; main()")
    done = subprocess.run([*python, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def shards(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "data").iterdir()}


def rows(run: Path) -> list[dict[str, Any]]:
    """In the order of their positions; a shard that was made again has a later line."""
    files = {line["shard"]["start"]: line["shard"]["file"] for line in manifest(run)[1:]}
    return [
        row for _, file in sorted(files.items()) for row in pq.read_table(run / file, partitioning=None).to_pylist()
    ]


def needs_the_parser_of(run: Path) -> None:
    """Another version of the spaCy model is another identity, and rightly refused."""
    name, version = manifest(run)[0]["run"]["identity"]["parse"]["model"].split()
    if (installed := spacy.util.get_package_version(name)) != version:
        pytest.skip(f"{run.name} was parsed by {name} {version}; installed is {installed}")


@pytest.mark.parametrize("name", ALL)
def test_it_is_read_and_sound(written: Path, sgpipe: Sgpipe, name: str) -> None:
    images = LABELED.get(name, 6)
    checked = json.loads(sgpipe("verify", name, "--json"))
    assert (checked["ok"], checked["images"], checked["problems"]) == (True, images, [])
    assert sum(json.loads(sgpipe("stats", name, "--json"))["images"].values()) == images
    sgpipe("export", name, "--to", "vg", "--out", "exported", "--threshold", "0")
    exported = [json.loads(path.read_text()) for path in (written / "exported").glob("*.json")]
    (graphs,) = [content for content in exported if isinstance(content, list) and "relationships" in content[0]]
    assert len(graphs) == images
    stored = sum(len(row["relations"]) for row in rows(written / name))
    assert sum(len(graph["relationships"]) for graph in graphs) == stored > 0


@pytest.mark.parametrize("name", GENERATE)
def test_the_command_of_a_run_finds_nothing_to_do(written: Path, sgpipe: Sgpipe, name: str) -> None:
    needs_the_parser_of(written / name)
    before = (written / name / "manifest.jsonl").read_bytes(), shards(written / name)
    summary = json.loads(sgpipe("generate", *GENERATE[name], "--out", name, "--limit", str(LABELED[name]), "--json"))
    assert summary["counts"]["images"] == LABELED[name]
    assert ((written / name / "manifest.jsonl").read_bytes(), shards(written / name)) == before


def test_the_recipe_in_a_run_goes_on_without_the_settings_that_it_lacks(written: Path, sgpipe: Sgpipe) -> None:
    needs_the_parser_of(written / "run-folder")
    command = ("generate", "run-folder/recipe.yaml", *MODELS, "--out", "run-folder", "--json")
    assert json.loads(sgpipe(*command))["counts"]["images"] == LABELED["run-folder"]


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (
            (),
            0,
            "it continues with caption.repetition_penalty=1 and caption.top_k=0",
        ),
        (("--set", "caption.repetition_penalty=1", "--set", "caption.top_k=0"), 0, ""),
        (("--set", "caption.top_k=20"), 2, "  caption.top_k: 0 then, 20 now"),
    ],
)
def test_a_run_goes_on_without_the_settings_that_its_recipe_got_since(
    written: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    needs_the_parser_of(written / "run-folder")
    command = [*GENERATE["run-folder"], *settings, "--out", "run-folder", "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["sgpipe", "generate", *command])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().err
    assert (ended.value.code or 0) == code, printed
    assert told in printed
    assert ("NOTE: an earlier" in printed) == (told.startswith("it continues") or code == 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATE)
def test_a_run_goes_on_and_keeps_what_is_there(written: Path, name: str) -> None:
    """The first shard is lost: it is made again with the same rows, except those whose boxes the detector of that time
    found. The others stay, and the other images come.
    """
    run = written / name
    needs_the_parser_of(run)
    before, kept = rows(run), shards(run)
    lost = min(kept)
    (run / "data" / lost).unlink()
    del kept[lost]
    summary = json.loads(in_a_process("generate", *GENERATE[name], "--out", name, "--json"))
    assert (summary["counts"]["images"], summary["counts"]["errors"]) == (6, 0)
    assert kept.items() <= shards(run).items()
    after = rows(run)
    assert len(after) == 6
    same = slice(1, None) if name == "run-folder" else slice(None)
    for old, new in zip(before[same], after[same], strict=False):
        confidences = [[relation.pop("confidence") for relation in row["relations"]] for row in (old, new)]
        assert new == old
        assert confidences[1] == pytest.approx(confidences[0], abs=1e-4)


def test_the_command_of_an_import_finds_nothing_to_do(written: Path, sgpipe: Sgpipe) -> None:
    before = (written / "import" / "manifest.jsonl").read_bytes(), shards(written / "import")
    summary = json.loads(sgpipe(*IMPORT, "--json"))
    assert summary["counts"]["images"] == 6
    assert ((written / "import" / "manifest.jsonl").read_bytes(), shards(written / "import")) == before


def test_an_import_goes_on(written: Path, sgpipe: Sgpipe) -> None:
    before = rows(written / "import")
    for path in (written / "import" / "data").iterdir():
        path.unlink()
    sgpipe(*IMPORT)
    assert rows(written / "import") == before


def test_a_checkpoint_is_a_network(written: Path) -> None:
    network = RTagger.from_pretrained(written / "training" / "last")
    stored = load_file(written / "training" / "last" / "model.safetensors")
    state = network.state_dict()
    assert state.keys() == stored.keys()
    assert all(state[name].equal(tensor) for name, tensor in stored.items())
    assert network.tokenizer is not None


def test_a_training_goes_on_by_its_own_recipe(written: Path, sgpipe: Sgpipe) -> None:
    training = written / "training"
    command = ("train", "training/recipe.yaml", "--out", "training", "--json")
    before = (training / "metrics.jsonl").read_text()
    assert json.loads(sgpipe(*command))["steps"] == STEPS
    assert (training / "metrics.jsonl").read_text() == before
    weights = load_file(training / "last" / "model.safetensors")

    summary = json.loads(sgpipe(*command, "--epochs", "2"))
    assert (summary["epochs"], summary["steps"]) == (2, 2 * STEPS)
    metrics = (training / "metrics.jsonl").read_text()
    assert metrics.startswith(before)
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2, 3, 4]
    moved = load_file(training / "last" / "model.safetensors")
    assert any(not moved[name].equal(tensor) for name, tensor in weights.items())
