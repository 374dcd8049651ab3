"""The paper, from images to its table, in the smallest miniature: every step runs, and every recipe
trains.
"""

import json
from pathlib import Path

from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.training.metrics import read_metrics

VALUES = {
    "annotated": 16, "labelled": 6, "test": 4, "start_steps": 1, "tagger_steps": 2, "pretrain_steps": 2, "steps": 2,
    "limit_10": 8, "limit_1": 4, "confidence": 0, "kept": 0,
}  # fmt: skip


def test_the_whole_paper_in_miniature(tmp_path: Path) -> None:
    sets = [word for name, value in VALUES.items() for word in ("--set", f"values.{name}={value}")]
    words = [
        "reproduce",
        "rlipv2",
        "--scale",
        "miniature",
        "--out",
        str(tmp_path / "out"),
        *sets,
        "--json",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    reproduced = json.loads(done.stdout)
    assert "NOT comparable" in reproduced["note"]
    assert sum(step["figure"] is not None for step in reproduced["steps"].values()) == 8
    trained = [
        name
        for name, step in reproduced["steps"].items()
        if step["command"].startswith("sgpipe train")
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    for name in trained:
        rows = [row for row in read_metrics(tmp_path / "out" / name) if row["event"] == "step"]
        assert rows[-1]["gradient_norm"] > 0
        assert f"{name}: " in page
    assert len(trained) == 10
    assert page.count("<svg") >= 10
    second = CliRunner().invoke(app, words)
    assert json.loads(second.stdout) == reproduced
    assert second.stderr.count("done before") == len(reproduced["steps"])
