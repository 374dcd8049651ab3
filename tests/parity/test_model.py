"""`python -m tests.parity.model FOLDER`, right and wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.golden import Report, open_golden, parse_flags
from tests.parity.model import main

SMALL = ("tagger_glip", "tagger_vxac", "parsed", "parseda")


@pytest.mark.parametrize("model", SMALL)
def test_small_networks_equal_the_reference(oracle: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(oracle / "golden" / "model" / model / "small")]) == 0
    printed = capsys.readouterr().out
    for part in ("raw text: encoder.memory", "raw text: text_resized", "encoded text: out.pred_verb_logits"):
        assert part in printed
    if model.startswith("tagger"):
        assert "queries: training query" in printed
        assert "generation: batch2_empty_last_group" in printed
    assert "not checked yet: losses" in printed


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tagger_vxac/full_swint", "parseda/full_r50"])
def test_networks_of_paper_size_equal_the_reference(oracle: Path, folder: str) -> None:
    assert main([str(oracle / "golden" / "model" / folder)]) == 0


@pytest.fixture
def copied(oracle: Path, tmp_path: Path) -> Path:
    """A folder to spoil."""
    source = oracle / "golden" / "model"
    shutil.copytree(source / "roberta_small", tmp_path / "roberta_small")
    shutil.copytree(source / "tagger_vxac" / "small", tmp_path / "tagger_vxac" / "small")
    for path in tmp_path.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return tmp_path / "tagger_vxac" / "small"


def spoil(path: Path, key: str, by: float) -> None:
    tensors = load_file(path)
    tensors[key].view(-1)[0] += by
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("file", "key", "by", "named"),
    [
        ("intermediates.safetensors", "alif1.lang", 2e-4, "raw text: alif1.lang"),
        ("outputs_encoded_text.safetensors", "out.pred_sub_boxes", 2e-5, "encoded text: out.pred_sub_boxes"),
        ("prepare_query.safetensors", "eval.query", 2e-4, "queries: evaluation query"),
        ("weights.safetensors", "transformer.coord_proj.bias", 0.1, "out.pred_verb_logits"),
    ],
)
def test_a_changed_number_is_told(
    copied: Path, file: str, key: str, by: float, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copied / file, key, by)
    assert main([str(copied)]) == 1
    assert named in capsys.readouterr().out.split("outside tolerance:")[1]


def test_a_changed_annotation_is_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "generation.json"
    content = json.loads(path.read_text())
    relations = content["cases"]["batch2"]["annotation"][0]["relationships"]
    relations[0]["predicate"], relations[1]["predicate"] = relations[1]["predicate"], relations[0]["predicate"]
    path.write_text(json.dumps(content))
    assert main([str(copied)]) == 1
    failures = capsys.readouterr().out.split("outside tolerance:")[1]
    assert "generation: batch2: 15 relations in order" in failures
    assert "batch16" not in failures


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


def test_later_flags_win() -> None:
    options = parse_flags("--num_queries 200 --subject_class --dropout 0.0 --num_queries 20")
    assert options["num_queries"] == "20"
    assert options["subject_class"] is True
    assert options["fusion_last_vis"] is False
    assert options["gating_mechanism"] == "GLIP"


def test_not_a_number_never_passes() -> None:
    report = Report(small=True)
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    report.compare("a", "found nan", nan, one)
    report.compare("a", "expected nan", one, nan)
    report.compare("a", "shape", torch.ones(2), one)
    assert [row.within for row in report.rows] == [False, True, False]


def test_probes_guard_the_seeded_weights(oracle: Path) -> None:
    golden = open_golden(oracle / "golden" / "model" / "tagger_vxac" / "full_swint")
    assert not golden.small
    assert len(golden.meta["probe"]) > 20
