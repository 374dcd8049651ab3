"""`python -m tests.parity.model FOLDER`, right and wrong."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.golden import Report, open_golden
from tests.parity.model import main

SMALL = ("tagger_glip", "tagger_vxac", "parsed", "parseda")


@pytest.mark.parametrize("model", SMALL)
def test_small_networks_equal_the_reference(
    subset: Path, golden: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(golden / "model" / model / "small")]) == 0
    printed = capsys.readouterr().out
    if golden != subset:
        for part in ("raw text: encoder.memory", "raw text: text_resized", "encoded text: inter.encoder.memory"):
            assert part in printed
    for part in ("raw text: out.aux0.pred_sub_boxes", "encoded text: out.pred_verb_logits"):
        assert part in printed
    if model.startswith("tagger"):
        assert "queries: training query" in printed
        assert "generation: batch2_empty_last_group" in printed
    parts = ["losses of targets_a: TOTAL_WEIGHTED", "losses of targets_a: loss_verb_ce_1", "gradients"]
    if not model.startswith("tagger"):
        parts += ["losses of targets_b", "losses of giou_only", "matcher: targets_b, aux1", "pseudo-labels"]
        parts += ["losses of plain_focal_zero_obj_box_img0_pair1", "matcher_zero_obj_box", "sgg.1.verb_scores"]
    for part in parts:
        assert part in printed


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tagger_vxac/full_swint", "parseda/full_r50"])
def test_networks_of_paper_size_equal_the_reference(full: Path, folder: str) -> None:
    assert main([str(full / "model" / folder)]) == 0


@pytest.fixture
def copied(subset: Path, tmp_path: Path) -> Path:
    """A folder to spoil, without what takes long to check."""
    folder = copy_of(subset, tmp_path, "tagger_vxac")
    (folder / "grad_norms.json").unlink()
    return folder


def copy_of(golden: Path, tmp_path: Path, model: str) -> Path:
    """With the folder that others share tensors with, if there are such."""
    for name in ("roberta_small", "parsed/small", f"{model}/small"):
        shutil.copytree(golden / "model" / name, tmp_path / name, dirs_exist_ok=True)
    for path in tmp_path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return tmp_path / model / "small"


def spoil(path: Path, key: str, by: float) -> None:
    tensors = load_file(path)
    tensors[key].view(-1)[0] += by
    save_file(tensors, path)


OUTPUTS = (
    ("outputs_raw_text.safetensors", "out.aux1.pred_obj_logits", 2e-4, "raw text: out.aux1.pred_obj_logits"),
    ("outputs_encoded_text.safetensors", "out.pred_sub_boxes", 2e-5, "encoded text: out.pred_sub_boxes"),
    ("prepare_query.safetensors", "eval.query", 2e-4, "queries: evaluation query"),
)
WEIGHT = ("weights.safetensors", "transformer.coord_proj.bias", 0.1, "out.pred_verb_logits")


@pytest.mark.parametrize("changed", [OUTPUTS, (WEIGHT,)], ids=["outputs", "weight"])
def test_changed_numbers_are_told(
    copied: Path, changed: tuple[tuple[str, str, float, str], ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for file, key, by, _ in changed:
        spoil(copied / file, key, by)
    assert main([str(copied)]) == 1
    failures = capsys.readouterr().out.split("outside tolerance:")[1]
    assert [named for *_, named in changed if named not in failures] == []
    assert changed == (WEIGHT,) or len(failures.strip().splitlines()) == len(changed)


def test_folders_of_another_form(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert "is not a reference folder: it has no meta.json" in capsys.readouterr().err
    (copied / "inputs.safetensors").write_bytes(b"cut")
    assert main([str(copied)]) == 2
    assert "inputs.safetensors cannot be read" in capsys.readouterr().err
    (copied / "meta.json").write_text("{}")
    assert main([str(copied)]) == 2
    assert "meta.json has no flags" in capsys.readouterr().err


def test_not_a_number_never_passes() -> None:
    report = Report(small=True)
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    report.compare("a", "found nan", nan, one)
    report.compare("a", "expected nan", one, nan)
    report.compare("a", "shape", torch.ones(2), one)
    assert [row.within for row in report.rows] == [False, True, False]


def test_probes_guard_the_seeded_weights(full: Path) -> None:
    golden = open_golden(full / "model" / "tagger_vxac" / "full_swint")
    assert not golden.small
    assert len(golden.meta["probe"]) > 20
