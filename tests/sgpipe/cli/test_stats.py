"""`sgpipe stats` on the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import shard_name, write_shard
from tests.sgpipe.storage.test_shards import full_record


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run_folder(tmp_path) -> Path:
    root = tmp_path / "run"
    records = [full_record(i) for i in range(3)]
    failed = full_record(3)
    failed.split, failed.relations = "train", []
    failed.fail("load", f"image file not found: {tmp_path}/3.jpg")
    root.mkdir()
    manifest = Manifest.create(root, {"name": "mine", "fingerprint": "f"})
    manifest.commit(write_shard(root, shard_name("val", 0, 3), "val", 0, records, {}))
    manifest.commit(write_shard(root, shard_name("train", 0, 1), "train", 0, [failed], {}))
    return root


def test_stats_counts_what_the_shards_hold(run_folder):
    result = invoke("stats", run_folder, "--json")
    counts = json.loads(result.stdout)
    assert counts["run"] == "mine"
    assert counts["images"] == {"val": 3, "train": 1}
    assert counts["totals"]["relations"] == 6
    assert counts["totals"]["images_without_relations"] == 0
    assert counts["predicates"] == {"near": 3, "on": 3}
    assert list(counts["errors"].values()) == [1]
    by_threshold = {level["threshold"]: level for level in counts["thresholds"]}
    # 0.25 passes its own threshold; relations without confidence (ground truth) pass all.
    assert by_threshold[0.25]["relations"] == 6
    assert by_threshold[0.3] == {"threshold": 0.3, "relations": 3, "images": 3, "pairs": 3, "predicate_kinds": 1,
                                  "per_image": 1, "per_pair": 1}  # fmt: skip
    table = invoke("stats", run_folder)
    assert table.exit_code == 0
    assert "error rows" in table.stdout
