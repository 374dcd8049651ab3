"""Invalid trainings: a one-line message says what is wrong, where, and what to do, without a traceback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from rlip_model.training import state
from sgpipe.cli.main import app
from tests.sgpipe.training.trainings import command, different, training, weights


def invoke(run: Path, out: Path, *more: str, kind: str = "tagger", **changes: Any) -> Result:
    arguments = command(run, out, kind, **changes)
    return CliRunner().invoke(app, [*arguments[arguments.index("train") :], *more])


def refused(result: Result, code: int = 2) -> str:
    """The only error message of a refused training."""
    assert not isinstance(result.exception, Exception), result.exception
    assert result.exit_code == code, result.output
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisation__batch": 0}, "optimisation: batch is 0, expected at least 1"),
        ({"optimisation__accumulate": 3}, "cannot be divided into 3 equal parts"),
        ({"optimisation__frozen": ["backbones"]}, "optimisation.frozen: the network has no part 'backbones'"),
        ({"data__labels": "full"}, "has no closed class lists"),
        ({"data__train": []}, "data.train is not set"),
        ({"model__config": {"text_config": 5}}, "text_config"),
        ({"model__backbone": "swin_tiny"}, "needs a RoBERTa"),
    ],
    ids=str,
)
def test_invalid_settings(drawn_run: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    said = refused(invoke(drawn_run, tmp_path / "out", **changes))
    assert message in said
    assert len(said) < 600


DAMAGES = {
    "model.safetensors": b"cut", "config.json": b"{", "optimizer.safetensors": b"", "training.json": b'{"epoch": 1}',
    "tokenizer.json": None,
}  # fmt: skip


def test_a_damaged_checkpoint_is_named(drawn_run: Path, tmp_path: Path) -> None:
    """Of a training that can be extended."""
    training(drawn_run, tmp_path / "whole", optimisation__schedule="step", optimisation__epochs=1)
    for name, content in DAMAGES.items():
        out = shutil.copytree(tmp_path / "whole", tmp_path / f"damaged-{name}", symlinks=True)
        file = (out / "last").resolve() / name
        file.unlink() if content is None else file.write_bytes(content)
        assert "step-00000003" in refused(invoke(drawn_run, out, optimisation__schedule="step")), name


def test_a_diverging_training_keeps_the_batch_and_the_last_checkpoint(drawn_run: Path, tmp_path: Path) -> None:
    result = invoke(drawn_run, tmp_path / "out", optimisation__lr=1e30, output__checkpoint_every=1)
    said = refused(result, code=1)
    assert "step 2" in said
    assert "the batch is saved in" in said
    assert "optimisation.lr" in said
    (kept,) = (tmp_path / "out").glob("diverged-step-*/process-0")
    names = json.loads((kept / "batch.json").read_text())["images"]
    assert len(names) == len(load_file(kept / "batch.safetensors")["pixel_values"]) == 4
    assert (tmp_path / "out" / "last").resolve().name == "step-00000001"


def full(*arguments: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_training_resumes_after_a_full_disk(
    drawn_run: Path, trained_tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = state.Checkpoints.save

    def save_first(self: state.Checkpoints, *arguments: Any) -> Path:
        if (self.root / "last").exists():
            monkeypatch.setattr(state, "save_file", full)
        return save(self, *arguments)

    monkeypatch.setattr(state.Checkpoints, "save", save_first)
    said = refused(invoke(drawn_run, tmp_path / "out"), code=1)
    assert "No space left on device" in said
    assert (tmp_path / "out" / "last").resolve().name == "step-00000003"
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    training(drawn_run, tmp_path / "out")
    assert not different(weights(tmp_path / "out"), weights(trained_tagger))
