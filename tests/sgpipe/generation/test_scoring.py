"""`sgpipe score` with a tiny random CLIP or a served model: what is done with scores, not what they
say of images.
"""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.generation.scoring import ClipScore, RelationRanker
from sgpipe.records import NO_OBJECT, Box, Record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import shard_name, write_shard
from tests.clip_checkpoints import make_open_clip
from tests.endpoint_server import EndpointServer, scripted
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import make_run
from tests.values import values_of

YES = math.exp(-0.25) / (math.exp(-0.25) + math.exp(-1.5))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    return make_open_clip(tmp_path_factory.mktemp("clip"))


def make(folder: Path, *more: Record) -> Path:
    records = [
        scene("0", [(0, "on", 1, 0.9), (1, "near", 0, 0.3)]), scene("1", [(0, "near", 2, 0.5)]),
        scene("2", [(0, "smiling", 3, 0.4), (1, "near", 1)], [*scene().objects, Box(NO_OBJECT, 0, (0, 0, 0, 0))]),
        scene("3"), scene("4", [(0, "on", 1, 0.7)]), *more,
    ]  # fmt: skip
    make_run(folder, records, rows=2, spoilt={"4": b"no image"})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "run")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The run with a further image, one of whose boxes has no area."""
    boxes = [Box("person", 1, (10, 10, 0, 80)), Box("dog", 2, (60, 40, 50, 40))]
    return make(tmp_path / "run", scene("5", [(0, "on", 1, 0.7)], boxes))


def score(run: Path, out: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["score", str(run), "--out", str(out), *map(str, options)])


def column(root: Path, name: str = "clip_score") -> list:
    return [
        row
        for shard in Manifest.load(root).shards
        for row in pq.read_table(root / shard.file)[name].to_pylist()
    ]


def test_scores_are_cosines_and_ranks_count_better_contrasts(model, run):
    import open_clip

    record = next(iter_records(run))
    image = Image.new("RGB", (320, 240), "red")
    clip_score, _ = RelationRanker(str(model), None, ["on", "near", "under", "at"])(record, image)
    network, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    texts = [
        "a person on a dog",
        "a dog on a person",
        *(f"a person {p} a dog" for p in ("near", "under", "at")),
    ]
    with torch.inference_mode():
        seen = network.eval().encode_image(
            preprocess(image.crop((10, 10, 110, 90)))[None], normalize=True
        )
        text_features = network.encode_text(
            open_clip.get_tokenizer(f"local-dir:{model}")(texts), normalize=True
        )
    expected = (text_features @ seen.T)[:, 0]
    assert clip_score.score == pytest.approx(expected[0].item(), abs=1e-5)
    assert clip_score.swapped == pytest.approx(expected[1].item(), abs=1e-5)
    assert clip_score.rank == 1 + (expected[1:] > expected[0]).sum()
    assert clip_score.contrasts == 4


def test_a_scored_run_keeps_its_records_and_has_a_column_beside(model, run, tmp_path):
    result = score(run, tmp_path / "scored", "--model", model, "--contrasts", "2")
    assert result.exit_code == 0, result.output
    assert "5 relations scored, 1 without an image" in result.stdout
    assert list(iter_records(tmp_path / "scored")) == list(iter_records(run))
    scores = column(tmp_path / "scored")
    assert list(map(len, scores)) == [2, 1, 2, 0, 1]
    assert scores[4] == [None]
    # no object; a dog and itself
    assert [entry["swapped"] is None for entry in scores[2]] == [
        True,
        True,
    ]
    stdout = CliRunner().invoke(app, ["stats", str(tmp_path / "scored"), "--json"]).stdout
    clip_score = json.loads(stdout)["clip_score"]
    assert (clip_score["scored"], clip_score["unscored"]) == (5, 1)
    entries = [entry for row in scores for entry in row if entry]
    assert clip_score["mean"] == pytest.approx(sum(values_of(entries, "score")) / 5)
    assert clip_score["first"] == sum(entry["rank"] == 1 for entry in entries) / 5
    assert clip_score["chance"] == pytest.approx(
        sum(1 / (entry["contrasts"] + 1) for entry in entries) / 5
    )
    beaten = [
        entry["score"] > entry["swapped"] for entry in entries if entry["swapped"] is not None
    ]
    assert clip_score["beats_swapped"] == pytest.approx(sum(beaten) / len(beaten))
    assert -1 <= clip_score["correlation"] <= 1
    assert (
        json.loads(CliRunner().invoke(app, ["stats", str(run), "--json"]).stdout)["clip_score"]
        is None
    )


def test_scoring_goes_on_and_refuses_another_model(model, run, tmp_path, monkeypatch):
    calls = []

    def stopping(self, record, image):
        calls.append(record.image_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [ClipScore(0.5, None, 1, 1)] * len(record.relations)

    monkeypatch.setattr(RelationRanker, "__call__", stopping)
    assert score(run, tmp_path / "scored", "--model", model).exit_code == 130
    assert len(Manifest.load(tmp_path / "scored").shards) == 1
    assert score(run, tmp_path / "scored", "--model", model).exit_code == 0
    assert calls == ["0", "1", "2", "2"]
    assert score(run, tmp_path / "scored", "--model", model).exit_code == 0
    assert len(calls) == 4
    other = score(run, tmp_path / "scored", "--model", model, "--contrasts", "1")
    assert other.exit_code == 2
    assert "contrasts: ['near', 'on', 'smiling'] then, ['near'] now" in other.stderr


def test_shards_that_were_processed_again_are_scored_again_and_all_scores_are_counted(
    model, run, tmp_path
):
    first = json.loads(score(run, tmp_path / "out", "--model", model, "--json").stdout)
    assert json.loads(score(run, tmp_path / "out", "--model", model, "--json").stdout) == first
    manifest = Manifest.load(run)
    old = manifest.shards[0]
    shard_records = list(iter_records(run))[: manifest.shards[0].rows]
    shard_records[0].relations = shard_records[0].relations[:1]
    name = shard_name(old.split, old.start, old.stop, revision=1)
    manifest.commit(write_shard(run, name, old.split, old.start, shard_records, {}))
    second = json.loads(score(run, tmp_path / "out", "--model", model, "--json").stdout)
    assert second == {**first, "scored": first["scored"] - 1}
    assert [len(record.relations) for record in iter_records(tmp_path / "out")] == [
        *map(len, column(tmp_path / "out"))
    ]
    assert not (tmp_path / "out" / old.file).exists()


def by(server: EndpointServer, *options: object) -> tuple[object, ...]:
    return ("--by", "vlm", "--endpoint", server.url, "--model", "tiny-vlm", *options)


def test_a_served_model_is_asked_about_every_relation(flat: Path, tmp_path: Path) -> None:
    with EndpointServer(lambda body: ["Yes"]) as server:
        result = score(flat, tmp_path / "scored", *by(server))
    assert result.exit_code == 0, result.output
    assert "5 relations scored, 2 without an image or a box with an area" in result.stdout
    assert list(iter_records(tmp_path / "scored")) == list(iter_records(flat))
    yes = pytest.approx(YES)
    assert column(tmp_path / "scored", "vlm_score") == [
        [yes, yes],
        [yes],
        [yes, yes],
        [],
        [None],
        [None],
    ]
    assert "the score of a vision-language model" in (tmp_path / "scored" / "README.md").read_text(
        encoding="utf-8"
    )


def test_numbered_boxes_are_another_scoring(flat: Path, tmp_path: Path) -> None:
    with EndpointServer(lambda body: ["Yes"]) as server:
        result = score(flat, tmp_path / "scored", *by(server, "--questions", "shared"))
        assert "5 relations scored, 2 without" in result.stdout
        other = score(flat, tmp_path / "scored", *by(server))
    assert (other.exit_code, "questions: 'shared' then" in other.stderr) == (2, True)
    shown = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.requests]
    assert len(server.requests) == 11, "one to check"
    assert len(set(shown)) == 4, "of one picture an image"
    refused = score(flat, tmp_path / "clipped", "--questions", "each")
    assert (refused.exit_code, "--questions is for --by vlm" in refused.stderr) == (2, True)


def test_scoring_goes_on_and_nothing_is_asked_twice(flat: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored"
    with EndpointServer(lambda body: ["Yes"], scripted(*[None] * 8, *["rejected"] * 9)) as server:
        server.rejection = "API key expired"  # nobody pays any more
        first = score(flat, out, *by(server))
        assert first.exit_code == 2, first.output
        assert "OPENAI_API_KEY" in first.stderr
        assert len(Manifest.load(out).shards) == 1
        server.faults = lambda body, attempt: None
        asked = len(server.requests)
        assert score(flat, out, *by(server)).exit_code == 0
        assert max(server.paid.values()) <= 2, "once to check, once to judge"
        asked_in_all = len(server.requests)
        assert asked_in_all > asked
        assert json.loads(score(flat, out, *by(server, "--json")).stdout) == {
            "scored": 5,
            "unscored": 2,
        }
        assert len(server.requests) == asked_in_all, "nothing is left"
        other = score(flat, out, "--by", "vlm", "--endpoint", server.url, "--model", "other")
    assert (other.exit_code, "model: 'tiny-vlm' then, 'other' now" in other.stderr) == (2, True)


def test_a_run_can_have_both_scores_but_none_twice(flat: Path, model: Path, tmp_path: Path) -> None:
    assert score(flat, tmp_path / "clipped", "--model", model).exit_code == 0
    with EndpointServer(lambda body: ["Yes"]) as server:
        assert score(tmp_path / "clipped", tmp_path / "both", *by(server)).exit_code == 0
        second = score(tmp_path / "both", tmp_path / "twice", *by(server))
    assert column(tmp_path / "both") == column(tmp_path / "clipped")
    assert column(tmp_path / "both", "vlm_score")[0] == [pytest.approx(YES)] * 2
    assert (second.exit_code, len(second.stderr.splitlines())) == (2, 1)
    assert "already has the score of a vision-language model (column vlm_score)" in second.stderr
    assert not any((tmp_path / "twice").glob("data/*"))
    repeated = score(tmp_path / "both", tmp_path / "twice", "--model", model)
    assert "already has CLIP's score (column clip_score)" in repeated.stderr
