"""Commands that measure, score, predict and train, on runs and models in a store: as on those in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.cli.options import judged_file
from sgpipe.errors import UserError
from sgpipe.files.object_store import StorePath
from sgpipe.generation.scoring import AGREEMENT_COLUMN, Agreement, score_run
from sgpipe.records import Record
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_files import RunFiles
from sgpipe.storage.shards import read_file
from sgpipe.training.initial_model import make_initial_model
from sgpipe.utils.console import Progress
from tests.integration.faults.conftest import Faults
from tests.integration.faults.test_view_store import upload
from tests.sgpipe.stats.runs import make_shards, scene
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.training.trainings import SETTINGS, different, recipe, training, weights
from tests.sgpipe.training.trainings import make_run as drawn_run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGPIPE_CACHE", str(tmp_path / "cache"))


def below(store: StorePath, name: str) -> StorePath:
    return StorePath(f"{store.uri}/{name}")


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


def without(text: str, *names: object) -> dict[str, Any]:
    """A JSON report without the names of what was compared."""
    for name in names:
        text = text.replace(str(name), "")
    return json.loads(text)


class TestLabels:
    @pytest.fixture
    def runs(self, tmp_path: Path, store: StorePath) -> tuple[Path, Path]:
        """A run and its ground truth, which are also in the store."""
        predicted = [scene(str(n), [(0, "on", 1, 0.2 + n / 200)]) for n in range(120)]
        true = [scene(str(n), [(0, "on" if n % 7 < n / 20 else "under", 1)]) for n in range(120)]
        places = make_shards(tmp_path / "run", predicted), make_shards(tmp_path / "truth", true)
        for place in places:
            upload(place, below(store, place.name))
        return places

    @pytest.mark.parametrize("command", ["calibrate", "eval labels", "eval boxes"])
    def test_runs_are_compared_with_ground_truth(
        self, runs: tuple[Path, Path], store: StorePath, tmp_path: Path, command: str
    ) -> None:
        reports = []
        for folder in (str(tmp_path), store.uri):
            out = ["--out", tmp_path / "calibration.json"] if command == "calibrate" else []
            pred = ["--pred", f"{folder}/run"] if command == "eval labels" else [f"{folder}/run"]
            report = run(*command.split(), *pred, "--truth", f"{folder}/truth", "--json", *out)
            assert "s3:/" not in report.replace("s3://", "")
            reports.append(without(report, folder))
        assert reports[0] == reports[1]

    def test_without_ground_truth_or_judgements(self, runs: tuple[Path, Path], store: StorePath) -> None:
        uri = f"{store.uri}/run"
        assert f"{uri} has no ground truth of its own: give --truth" in run("calibrate", uri, code=2).replace("\n", " ")
        with pytest.raises(UserError, match="judge relations with `sgpipe view"):
            judged_file(Path(uri), Path("own"))
        file = RunFiles(uri).cache / JUDGEMENTS
        file.touch()
        assert judged_file(Path(uri), Path("own")) == file

    def test_messages_have_all_slashes(self, store: StorePath) -> None:
        for command in (["calibrate"], ["eval", "boxes"], ["eval", "labels", "--pred"], ["score", "--out", "x"]):
            said = run(*command, f"{store.uri}/none", "--truth" if command[0] != "score" else "--model", "x", code=2)
            assert "s3:/" not in said.replace("s3://", "")

    def test_scores_are_those_of_the_folder(self, tmp_path: Path, store: StorePath) -> None:
        records = [scene(str(n), [(0, "on", 1, 0.5), (1, "near", 0, 0.4)]) for n in range(6)]
        make_run(tmp_path / "run", records, rows=2, run={"store": store.uri})
        upload(tmp_path / "run", store)

        def scorer(record: Record, image: Image.Image) -> list[Agreement | None]:
            return [Agreement(image.getpixel((0, 0))[0] / 255, None, 1, 1) for _ in record.relations]

        for place, out in ((tmp_path / "run", "by_folder"), (Path(store.uri), "by_store")):
            counts = score_run(place, tmp_path / out, AGREEMENT_COLUMN, lambda: scorer, {}, Progress())
            assert counts == {"scored": 12, "unscored": 0}
        copies = [Manifest.load(tmp_path / out) for out in ("by_folder", "by_store")]
        assert [shard.sha256 for shard in copies[0].shards] == [shard.sha256 for shard in copies[1].shards]
        assert "store" not in copies[1].run  # its shards are in the folder
        assert read_file(tmp_path / "by_store" / copies[1].shards[0].file, ["agreement"]).num_rows == 2


class TestModels:
    @pytest.fixture
    def drawn(self, tmp_path: Path, store: StorePath) -> Path:
        """A run of drawn images and an untrained network, which are also in the store."""
        root = drawn_run(tmp_path)
        upload(root, below(store, "run"))
        make_initial_model(recipe(root, "pretrain").model, ["person", "dog"], 0, tmp_path / "network")
        for file in (tmp_path / "network").iterdir():
            store.put(f"network/{file.name}", file)
        return root

    def test_predictions_are_those_of_the_folder(self, drawn: Path, store: StorePath, tmp_path: Path) -> None:
        files, results = [], []
        for folder in (str(tmp_path), store.uri):
            model, data = [f"{folder}/network"], ["--data", f"{folder}/run", "--device", "cpu"]
            out = tmp_path / f"{len(files)}.json"
            run("predict", *model, *data, "--out", out, "--form", "vg", "--short-side", 48, "--long-side", 64)
            files.append(out.read_bytes())
            results.append(without(run("eval", "vg", "--model", *model, *data, "--json"), folder))
        assert files[0] == files[1]
        assert results[0] == results[1]

    def test_a_training_begins_with_the_network(self, drawn: Path, store: StorePath, tmp_path: Path) -> None:
        settings = {**SETTINGS, "optimisation.steps": 1}
        for number, folder in enumerate((str(tmp_path), store.uri)):
            training(drawn, tmp_path / f"out{number}", "pretrain", **{**settings, "model.init": f"{folder}/network"})
        assert not different(weights(tmp_path / "out0"), weights(tmp_path / "out1"))

    def test_what_is_no_model_is_one_line(self, drawn: Path, store: StorePath, tmp_path: Path, faults: Faults) -> None:
        train = ["train", "tagger", "--miniature", "--data", drawn, "--out", tmp_path / "out", "--init"]
        assert "is no model: it has no config.json" in run(*train, f"{store.uri}/none", code=2)
        said = run(*train, f"{store.uri}/a.pth", code=2).replace("\n", " ")
        assert "a.pth" in said
        said = run("predict", f"{store.uri}/none", "--data", drawn, "--out", tmp_path / "p.json", code=2)
        assert "is no model: it has no config.json" in said
        faults.fault = lambda method, path: "403 AccessDenied" if "network" in path else None
        assert "AccessDenied" in run(*train, f"{store.uri}/network", code=1)
