"""`python -m tests.parity.COMMAND FOLDER`: all is equal on the reference figures, and what is not
is told.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlip_model.evaluation.visual_genome import VG150_PREDICATES, vg150_zero_shot
from sgpipe.records import Relation, deduplicate
from tests.parity import candidates, misc, model, parser
from tests.parity.evaluation import __main__ as evaluation
from tests.parity.golden import Report
from tests.values import values_of

pytestmark = pytest.mark.slow

CHECKED = {  # how many figures are equal, in the subset and in the full set
    "model/tagger_glip/small": (803, 856), "model/tagger_vxac/small": (900, 953), "model/parsed/small": (963, 1015),
    "model/parseda/small": (976, 1028), "model/misc": (75, 75), "evaluation": (162, 214), "parser": (1, 1),
    "candidates": (17, 17),
}  # fmt: skip
MAINS = {
    "evaluation": evaluation.main,
    "parser": parser.main,
    "candidates": candidates.main,
    "model/misc": misc.main,
}
Print = pytest.CaptureFixture[str]


@pytest.mark.parametrize("folder", CHECKED)
def test_all_is_equal(subset: Path, golden: Path, folder: str, capsys: Print) -> None:
    assert MAINS.get(folder, model.main)([str(golden / folder)]) == 0
    equal = re.findall(r"^  ok |: equal$|^all bars passed$", capsys.readouterr().out, re.MULTILINE)
    assert len(equal) == CHECKED[folder][golden != subset]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tagger_vxac/full_swint", "parseda/full_r50"])
def test_networks_of_paper_size_equal_the_reference(full: Path, folder: str) -> None:
    assert model.main([str(full / "model" / folder)]) == 0


def test_bars_of_the_learned_parser(subset: Path, capsys: Print) -> None:
    assert parser.main([str(subset / "parser"), "--parser", "learned"]) == 0
    assert "all bars passed" in capsys.readouterr().out


def test_a_missed_bar_fails(subset: Path, capsys: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser.BARS["rules"], "all", {"strict": 0.99})
    assert parser.main([str(subset / "parser")]) == 1
    assert "2 bars missed" in capsys.readouterr().out


@pytest.mark.parametrize("main", [*MAINS.values(), model.main])
def test_another_folder_is_refused(
    main: Callable[[list[str]], int], tmp_path: Path, capsys: Print
) -> None:
    assert main([str(tmp_path / "a" / "b")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_visual_genomes_packaged_lists_are_the_published_ones(oracle: Path) -> None:
    published = json.loads((oracle / "data" / "vg" / "zeroshot_triplet_vg150.json").read_text())
    assert vg150_zero_shot().tolist() == published
    names = json.loads((oracle / "data" / "vg" / "VG-SGG-dicts-with-attri.json").read_text())[
        "idx_to_predicate"
    ]
    assert list(VG150_PREDICATES) == [names[str(number)] for number in range(1, 51)]


@pytest.fixture
def network(subset: Path, tmp_path: Path) -> Path:
    """A folder to spoil, with those whose tensors it shares, without what takes long to check."""
    for name in ("roberta_small", "parsed/small", "tagger_vxac/small"):
        shutil.copytree(subset / "model" / name, tmp_path / name, dirs_exist_ok=True)
    (tmp_path / "tagger_vxac/small/grad_norms.json").unlink()
    return tmp_path / "tagger_vxac/small"


def failures(printed: str) -> str:
    return printed.split("outside tolerance:")[1]


def spoil(path: Path, change: Callable[[Any], object]) -> None:
    packed = path.suffix == ".gz"
    content = json.loads(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    change(content)
    changed = json.dumps(content).encode()
    path.write_bytes(gzip.compress(changed) if packed else changed)


def test_a_changed_tensor_is_told(network: Path, capsys: Print) -> None:
    changes = (
        (
            "outputs_raw_text",
            "out.aux1.pred_obj_logits",
            2e-4,
            "raw text: out.aux1.pred_obj_logits",
        ),
        ("outputs_encoded_text", "out.pred_sub_boxes", 2e-5, "encoded text: out.pred_sub_boxes"),
        ("prepare_query", "eval.query", 2e-4, "queries: evaluation query"),
    )
    for name, key, by, _ in changes:
        file = network / f"{name}.safetensors"
        tensors = load_file(file)
        tensors[key].view(-1)[0] += by
        save_file(tensors, file)
    assert model.main([str(network)]) == 1
    differences = failures(capsys.readouterr().out).strip().splitlines()
    assert len(differences) == len(changes)
    assert all(any(tensor_name in line for line in differences) for *_, tensor_name in changes)


@pytest.mark.parametrize(
    ("name", "content"), [("inputs.safetensors", b"cut"), ("meta.json", b"{}")]
)
def test_a_broken_folder_is_named(network: Path, name: str, content: bytes, capsys: Print) -> None:
    (network / name).write_bytes(content)
    assert model.main([str(network)]) == 2
    assert f"{network} is not of the known form: " in capsys.readouterr().err


def test_not_a_number_never_passes() -> None:
    report = Report(small=True)
    nan = torch.tensor([float("nan")])
    one = torch.ones(1)
    report.compare("a", "found nan", nan, one)
    report.compare("a", "expected nan", one, nan)
    report.compare("a", "shape", torch.ones(2), one)
    assert values_of(report.rows, "within") == [False, True, False]


def test_other_targets_are_told(subset: Path, tmp_path: Path, capsys: Print) -> None:
    def change(content: Any) -> None:
        if "image_size_wh" in content:
            content["cases"]["all"]["target"]["sub_boxes"][0][0] += 1e-4
        else:
            content["cases"]["freq_12"]["python_random_seed"] += 1
            content["cases"]["random_15"]["targets"][1]["verb_labels"][0][0] = 1.0

    shutil.copytree(subset / "model" / "misc", tmp_path / "misc")
    for name in ("label_merge_and_sampling.json", "vg_annotation_to_target.json"):
        spoil(tmp_path / "misc" / name, change)
    assert misc.main([str(tmp_path / "misc")]) == 1
    differences = failures(capsys.readouterr().out)
    for part in (
        "freq_12: object texts",
        "random_15, image 1: relation labels",
        "annotation, all: subject boxes",
    ):
        assert part in differences


def test_other_figures_are_told(subset: Path, tmp_path: Path, capsys: Print) -> None:
    def change(figures: Any) -> None:
        default = figures["settings"]["default_stable_sort"]
        figures["settings"]["new_stable_sort"] = default
        default["per_class_rel_top100"][7]["ap"] += 2e-6
        default["metrics"] = dict.fromkeys(default["metrics"])

    for name in ("ties120.expected.json", "ties120.inputs.json.gz"):
        shutil.copy(subset / "evaluation" / "openimages" / name, tmp_path)
    spoil(tmp_path / "ties120.expected.json", change)
    assert evaluation.main([str(tmp_path)]) == 1
    differences = failures(capsys.readouterr().out)
    assert "setting 'new_stable_sort' is unknown" in differences
    assert "per_class_rel_top100 ap (396 numbers" in differences
    # null where a number is expected
    assert "default_stable_sort: metrics (18 numbers, " in differences


def test_another_candidate_is_told(subset: Path, tmp_path: Path, capsys: Print) -> None:
    def change(expected: Any) -> None:
        next(candidates for candidates in expected["top2"].values() if candidates)[0] += 1

    for name in ("candidates", "data"):
        shutil.copytree(subset / name, tmp_path / name)
    spoil(tmp_path / "candidates" / "post_expected.json.gz", change)
    assert candidates.main([str(tmp_path / "candidates")]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "differs" in line]
    assert re.match(r"post top2: .*/\d+\[0\]: \d+, RLIPv2 \d+", line)


def test_the_first_of_equals_stays_unless_all_do() -> None:
    rows = [Relation(0, 1, "on", score) for score in (0.3, 0.9, 0.2, 0.9)] + [
        Relation(1, 0, "on", 0.1)
    ]
    assert list(map(id, deduplicate(rows))) == [id(rows[i]) for i in (1, 4)]
    assert list(map(id, candidates.with_ties(rows))) == [id(rows[i]) for i in (1, 3, 4)]
    assert deduplicate([rows[1], unsure := Relation(0, 1, "on")]) == [unsure]  # as sure as can be
