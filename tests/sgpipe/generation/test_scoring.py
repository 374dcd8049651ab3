"""`sgpipe score` with a tiny random CLIP: nothing is said about images, everything about what is done with scores."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.generation.scoring import ClipScore, RelationRanker
from sgpipe.records import NO_OBJECT, Box
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records, shard_name, write_shard
from tests.clip_checkpoints import make_open_clip
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import make_run

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_open_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def run(tmp_path):
    records = [
        scene("0", [(0, "on", 1, 0.9), (1, "near", 0, 0.3)]),
        scene("1", [(0, "near", 2, 0.5)]),
        scene("2", [(0, "smiling", 3, 0.4), (1, "near", 1)], [*scene().objects, Box(NO_OBJECT, 0, (0, 0, 0, 0))]),
        scene("3"),
        scene("4", [(0, "on", 1, 0.7)]),
    ]
    make_run(tmp_path / "run", records, rows=2, spoilt={"4": b"no image"})
    return tmp_path / "run"


def score(run, out, model, *options):
    return CliRunner().invoke(app, ["score", str(run), "--out", str(out), "--model", str(model), *options])


def columns(root) -> list:
    shards = Manifest.load(root).shards
    return [row for shard in shards for row in pq.read_table(root / shard.file)["clip_score"].to_pylist()]


def test_scores_are_cosines_and_ranks_count_better_contrasts(model, run):
    record = next(iter_records(run))
    image = Image.new("RGB", (320, 240), "red")
    clip_score, _ = RelationRanker(str(model), None, ["on", "near", "under", "at"])(record, image)
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    texts = ["a person on a dog", "a dog on a person", *(f"a person {p} a dog" for p in ("near", "under", "at"))]
    with torch.inference_mode():
        seen = network.eval().encode_image(preprocess(image.crop((10, 10, 110, 90)))[None], normalize=True)
        said = network.encode_text(open_clip.get_tokenizer(f"local-dir:{model}")(texts), normalize=True)
    expected = (said @ seen.T)[:, 0]
    assert clip_score.score == pytest.approx(expected[0].item(), abs=1e-5)
    assert clip_score.swapped == pytest.approx(expected[1].item(), abs=1e-5)
    assert clip_score.rank == 1 + (expected[1:] > expected[0]).sum()
    assert clip_score.contrasts == 4


def test_a_scored_run_keeps_its_records_and_has_a_column_beside(model, run, tmp_path):
    result = score(run, tmp_path / "scored", model, "--contrasts", "2")
    assert result.exit_code == 0, result.output
    assert "5 relations scored, 1 without an image" in result.stdout
    assert list(iter_records(tmp_path / "scored")) == list(iter_records(run))
    column = columns(tmp_path / "scored")
    assert [len(row) for row in column] == [2, 1, 2, 0, 1]
    assert column[4] == [None]
    assert [entry["swapped"] is None for entry in column[2]] == [True, True]  # no object; a dog and itself
    said = CliRunner().invoke(app, ["stats", str(tmp_path / "scored"), "--json"]).stdout
    found = json.loads(said)["clip_score"]
    assert (found["scored"], found["unscored"]) == (5, 1)
    entries = [entry for row in column for entry in row if entry]
    assert found["score"] == pytest.approx(sum(entry["score"] for entry in entries) / 5)
    assert found["first"] == sum(entry["rank"] == 1 for entry in entries) / 5
    assert found["reciprocal_rank"] == pytest.approx(sum(1 / entry["rank"] for entry in entries) / 5)
    assert found["chance"] == pytest.approx(sum(1 / (entry["contrasts"] + 1) for entry in entries) / 5)
    beaten = [entry["score"] > entry["swapped"] for entry in entries if entry["swapped"] is not None]
    assert found["beats_swapped"] == pytest.approx(sum(beaten) / len(beaten))
    assert -1 <= found["correlation"] <= 1
    assert json.loads(CliRunner().invoke(app, ["stats", str(run), "--json"]).stdout)["clip_score"] is None


def test_scoring_goes_on_and_refuses_another_model(model, run, tmp_path, monkeypatch):
    calls = []

    def stopping(self, record, image):
        calls.append(record.image_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [ClipScore(0.5, None, 1, 1)] * len(record.relations)

    monkeypatch.setattr(RelationRanker, "__call__", stopping)
    assert score(run, tmp_path / "scored", model).exit_code == 130
    assert len(Manifest.load(tmp_path / "scored").shards) == 1
    assert score(run, tmp_path / "scored", model).exit_code == 0
    assert calls == ["0", "1", "2", "2"]
    assert score(run, tmp_path / "scored", model).exit_code == 0
    assert len(calls) == 4
    other = score(run, tmp_path / "scored", model, "--contrasts", "1")
    assert other.exit_code == 2
    assert "contrasts: ['near', 'on', 'smiling'] then, ['near'] now" in other.stderr


def test_shards_that_were_processed_again_are_scored_again_and_all_scores_are_counted(model, run, tmp_path):
    first = json.loads(score(run, tmp_path / "out", model, "--json").stdout)
    assert json.loads(score(run, tmp_path / "out", model, "--json").stdout) == first
    manifest = Manifest.load(run)
    old, kept = manifest.shards[0], list(iter_records(run))[: manifest.shards[0].rows]
    kept[0].relations = kept[0].relations[:1]
    name = shard_name(old.split, old.start, old.stop, revision=1)
    manifest.commit(write_shard(run, name, old.split, old.start, kept, {}))
    (run / old.file).unlink()
    again = json.loads(score(run, tmp_path / "out", model, "--json").stdout)
    assert again == {**first, "scored": first["scored"] - 1}
    assert [len(record.relations) for record in iter_records(tmp_path / "out")] == [
        len(row) for row in columns(tmp_path / "out")
    ]
    assert not (tmp_path / "out" / old.file).exists()


def test_models_that_cannot_be_had(run, tmp_path):
    with pytest.raises(UserError, match="pass its --weights"):
        RelationRanker("ViT-B-32", None, [])
    with pytest.raises(UserError, match="CLIP model "):
        RelationRanker(str(tmp_path), None, [])
