"""`sgpipe score --by vlm`: a column with the probability that a model finds each relation correct."""

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.records import NO_OBJECT, Box
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from tests.clip_checkpoints import make_clip
from tests.endpoint_server import EndpointServer, scripted
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import make_run
from tests.vlm_checkpoints import make_vlm

YES = math.exp(-0.25) / (math.exp(-0.25) + math.exp(-1.5))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [
        scene("0", [(0, "on", 1, 0.9), (1, "near", 0, 0.3)]),
        scene("1", [(0, "near", 2, 0.5)]),
        scene("2", [(0, "smiling", 3, 0.4), (1, "near", 0)], [*scene().objects, Box(NO_OBJECT, 0, (0, 0, 0, 0))]),
        scene("3"),
        scene("4", [(0, "on", 1, 0.7)]),
        scene("5", [(0, "on", 1, 0.7)], [Box("person", 1, (10, 10, 0, 80)), Box("dog", 2, (60, 40, 50, 40))]),
    ]
    make_run(tmp_path / "run", records, rows=2, spoilt={"4": b"no image"})
    return tmp_path / "run"


def score(run: Path, out: Path, *options: object):
    return CliRunner().invoke(app, ["score", str(run), "--out", str(out), *map(str, options)])


def column(root: Path, name: str = "vlm_score") -> list:
    return [row for shard in Manifest.load(root).shards for row in pq.read_table(root / shard.file)[name].to_pylist()]


def by(server: EndpointServer, *options: object) -> tuple[object, ...]:
    return ("--by", "vlm", "--endpoint", server.url, "--model", "tiny-vlm", *options)


def test_a_served_model_is_asked_about_every_relation(run: Path, tmp_path: Path) -> None:
    with EndpointServer(lambda body: ["Yes"]) as server:
        result = score(run, tmp_path / "scored", *by(server))
    assert result.exit_code == 0, result.output
    assert "5 relations scored, 2 without an image or a box with an area" in result.stdout
    assert list(iter_records(tmp_path / "scored")) == list(iter_records(run))
    yes = pytest.approx(YES)
    assert column(tmp_path / "scored") == [[yes, yes], [yes], [yes, yes], [], [None], [None]]
    assert "the score of a vision-language model" in (tmp_path / "scored" / "README.md").read_text(encoding="utf-8")


def test_scoring_goes_on_and_nothing_is_asked_twice(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored"
    with EndpointServer(lambda body: ["Yes"], scripted(*[None] * 8, *["rejected"] * 9)) as server:
        server.rejection = "API key expired"  # nobody pays any more
        first = score(run, out, *by(server))
        assert first.exit_code == 2, first.output
        assert "OPENAI_API_KEY" in first.stderr
        assert len(Manifest.load(out).shards) == 1
        server.faults = lambda body, attempt: None
        asked = len(server.requests)
        assert score(run, out, *by(server)).exit_code == 0
        assert max(server.paid.values()) <= 2, "once to check, once to judge"
        again = len(server.requests)
        assert again > asked
        assert json.loads(score(run, out, *by(server, "--json")).stdout) == {"scored": 5, "unscored": 2}
        assert len(server.requests) == again, "nothing is left"
        other = score(run, out, "--by", "vlm", "--endpoint", server.url, "--model", "other")
    assert (other.exit_code, "model: 'tiny-vlm' then, 'other' now" in other.stderr) == (2, True)


def test_a_run_can_have_both_scores_but_none_twice(run: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip")
    assert score(run, tmp_path / "clipped", "--model", clip).exit_code == 0
    with EndpointServer(lambda body: ["Yes"]) as server:
        assert score(tmp_path / "clipped", tmp_path / "both", *by(server)).exit_code == 0
        second = score(tmp_path / "both", tmp_path / "twice", *by(server))
    assert column(tmp_path / "both", "clip_score") == column(tmp_path / "clipped", "clip_score")
    assert column(tmp_path / "both")[0] == [pytest.approx(YES)] * 2
    assert (second.exit_code, len(second.stderr.splitlines())) == (2, 1)
    assert (
        "already has the score of a vision-language model (column vlm_score): score the run that it was made from"
        in second.stderr
    )
    assert not any((tmp_path / "twice").glob("data/*"))
    again = score(tmp_path / "both", tmp_path / "twice", "--model", clip)
    assert "already has CLIP's score (column clip_score)" in again.stderr


def test_a_local_model_gives_the_same_scores_every_time(run: Path, tmp_path: Path) -> None:
    model = make_vlm(tmp_path / "vlm", "smolvlm")
    for name in ("first", "second"):
        result = score(run, tmp_path / name, "--by", "vlm", "--model", model, "--device", "cpu")
        assert result.exit_code == 0, result.output
    assert column(tmp_path / "first") == column(tmp_path / "second")
    assert [[each is None for each in row] for row in column(tmp_path / "first")] == [
        [False, False],
        [False],
        [False, False],
        [],
        [True],
        [True],
    ]
