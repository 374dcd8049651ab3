"""`python -m tests.parity.COMMAND FOLDER`: all is equal on the reference figures, and what is not is told."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlip_model.evaluation.visual_genome import VG150_PREDICATES, vg150_zero_shot
from sgpipe.records import Relation, deduplicate
from tests.parity import candidates, misc, model, parser
from tests.parity.evaluation import __main__ as evaluation
from tests.parity.golden import Report, open_golden

NETWORK = ("raw text: out.aux0.pred_sub_boxes", "encoded text: out.pred_verb_logits", "gradients",
           "losses of targets_a: TOTAL_WEIGHTED", "losses of targets_a: loss_verb_ce_1")  # fmt: skip
TAGGER = (*NETWORK, "queries: training query", "generation: batch2_empty_last_group")
DETECTOR = (*NETWORK, "losses of targets_b", "losses of giou_only", "matcher: targets_b, aux1", "pseudo-labels",
            "losses of plain_focal_zero_obj_box_img0_pair1", "matcher_zero_obj_box", "sgg.1.verb_scores")  # fmt: skip
CHECKED = {
    "model/tagger_glip/small": TAGGER,
    "model/tagger_vxac/small": TAGGER,
    "model/parsed/small": DETECTOR,
    "model/parseda/small": DETECTOR,
    "model/misc": (
        "sampling, freq_18: object texts",
        "annotation, truncated_to_2_pairs: subject boxes",
        "evaluators, hico, nms_True: (4 numbers)",
        "evaluators, vcoco in training: (18 numbers)",
        "evaluators, open images, nms_False: (18 numbers)",
    ),
    "evaluation": (
        "hico/micro_cases, duplicate_gt: metrics (4 numbers)",
        "openimages/main300, nms_phrase_order_repaired: per_class_phr_top100 ap (889 numbers)",
        "openimages/ties120, default_stable_sort: metrics (18 numbers)",
        "vcoco/main300, official: scenario_1 per_role (25 numbers)",
        "vcoco/train_time300: metrics (31 numbers)",
        "vg/sgcls: metrics (25 numbers)",
    ),
    "parser": ("all bars passed",),
    "candidates": ("equal\n" * 17,),
}
ONLY_IN_FULL = {
    "model/parsed/small": (
        "raw text: encoder.memory", "raw text: text_resized", "encoded text: inter.encoder.memory",
    ),
    "evaluation": (
        "hico/real500, UC-RF: per_class ap (385 numbers)",
        "hico/ties250, default_stable_sort: metrics (4 numbers)",
        "vg/sgdet: metrics (22 numbers)",
        "vg/predcls: per_image_recall_100 (188 numbers)",
    ),
}  # fmt: skip
MAINS = {"evaluation": evaluation.main, "parser": parser.main, "candidates": candidates.main, "model/misc": misc.main}
Print = pytest.CaptureFixture[str]


@pytest.mark.parametrize("folder", CHECKED)
def test_all_is_equal(subset: Path, golden: Path, folder: str, capsys: Print) -> None:
    assert MAINS.get(folder, model.main)([str(golden / folder)]) == 0
    printed = capsys.readouterr().out
    if folder == "candidates":
        printed = "".join(line.rpartition(" ")[2] for line in printed.splitlines(keepends=True))
    for part in CHECKED[folder] + (ONLY_IN_FULL.get(folder, ()) if golden != subset else ()):
        assert part in printed


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
def test_another_folder_is_refused(main: Callable[[list[str]], int], tmp_path: Path, capsys: Print) -> None:
    assert main([str(tmp_path / "a" / "b")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_visual_genomes_packaged_lists_are_the_published_ones(oracle: Path) -> None:
    published = json.loads((oracle / "data" / "vg" / "zeroshot_triplet_vg150.json").read_text())
    assert vg150_zero_shot().tolist() == published
    names = json.loads((oracle / "data" / "vg" / "VG-SGG-dicts-with-attri.json").read_text())["idx_to_predicate"]
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


OUTPUTS = {
    "outputs_raw_text.safetensors": ("out.aux1.pred_obj_logits", 2e-4, "raw text: out.aux1.pred_obj_logits"),
    "outputs_encoded_text.safetensors": ("out.pred_sub_boxes", 2e-5, "encoded text: out.pred_sub_boxes"),
    "prepare_query.safetensors": ("eval.query", 2e-4, "queries: evaluation query"),
}
WEIGHT = {"weights.safetensors": ("transformer.coord_proj.bias", 0.1, "out.pred_verb_logits")}


@pytest.mark.parametrize("changed", [OUTPUTS, WEIGHT], ids=["outputs", "weight"])
def test_a_changed_tensor_is_told(network: Path, changed: dict[str, tuple[str, float, str]], capsys: Print) -> None:
    for file, (key, by, _) in changed.items():
        tensors = load_file(network / file)
        tensors[key].view(-1)[0] += by
        save_file(tensors, network / file)
    assert model.main([str(network)]) == 1
    told = failures(capsys.readouterr().out)
    assert [name for *_, name in changed.values() if name not in told] == []
    assert changed == WEIGHT or len(told.strip().splitlines()) == len(changed)


@pytest.mark.parametrize(("name", "content"), [("inputs.safetensors", b"cut"), ("meta.json", b"{}")])
def test_a_broken_folder_is_named(network: Path, name: str, content: bytes, capsys: Print) -> None:
    (network / name).write_bytes(content)
    assert model.main([str(network)]) == 2
    assert f"{network} is not of the known form: " in capsys.readouterr().err


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


def test_other_targets_are_told(subset: Path, tmp_path: Path, capsys: Print) -> None:
    shutil.copytree(subset / "model" / "misc", tmp_path / "misc")
    for name in ("label_merge_and_sampling.json", "vg_annotation_to_target.json"):
        content = json.loads((tmp_path / "misc" / name).read_text())
        if name.startswith("label"):
            content["cases"]["freq_12"]["python_random_seed"] += 1
            content["cases"]["random_15"]["targets"][1]["verb_labels"][0][0] = 1.0
        else:
            content["cases"]["all"]["target"]["sub_boxes"][0][0] += 1e-4
        (tmp_path / "misc" / name).write_text(json.dumps(content))
    assert misc.main([str(tmp_path / "misc")]) == 1
    told = failures(capsys.readouterr().out)
    assert "sampling, freq_12: object texts" in told
    assert "sampling, random_15, image 1: relation labels" in told
    assert "annotation, all: subject boxes" in told


def test_other_figures_are_told(subset: Path, tmp_path: Path, capsys: Print) -> None:
    for name in ("ties120.expected.json", "ties120.inputs.json.gz"):
        shutil.copy(subset / "evaluation" / "openimages" / name, tmp_path)
    figures = json.loads((tmp_path / "ties120.expected.json").read_text())
    default = figures["settings"]["default_stable_sort"]
    figures["settings"]["new_stable_sort"] = default
    default["per_class_rel_top100"][7]["ap"] += 2e-6
    default["metrics"] = dict.fromkeys(default["metrics"])
    (tmp_path / "ties120.expected.json").write_text(json.dumps(figures))
    assert evaluation.main([str(tmp_path)]) == 1
    told = failures(capsys.readouterr().out)
    assert "setting 'new_stable_sort' is unknown" in told
    assert "per_class_rel_top100 ap (396 numbers" in told
    assert "default_stable_sort: metrics (18 numbers, " in told  # null where a number is expected


def test_another_candidate_is_told(subset: Path, tmp_path: Path, capsys: Print) -> None:
    shutil.copytree(subset / "candidates", tmp_path / "candidates")
    shutil.copytree(subset / "data", tmp_path / "data")
    path = tmp_path / "candidates" / "post_expected.json.gz"
    expected = json.loads(gzip.decompress(path.read_bytes()))
    image = next(image for image, kept in expected["top2"].items() if kept)
    expected["top2"][image][0] += 1
    path.write_bytes(gzip.compress(json.dumps(expected).encode()))
    assert candidates.main([str(tmp_path / "candidates")]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "differs" in line]
    assert line.startswith("post top2:")
    assert f"/{image}[0]" in line


def test_the_first_of_equals_stays_unless_all_do() -> None:
    rows = [Relation(0, 1, "on", score) for score in (0.3, 0.9, 0.2, 0.9)] + [Relation(1, 0, "on", 0.1)]
    assert [id(row) for row in deduplicate(rows)] == [id(rows[i]) for i in (1, 4)]
    assert [id(row) for row in deduplicate(rows, keep_ties=True)] == [id(rows[i]) for i in (1, 3, 4)]
    assert deduplicate([rows[1], unsure := Relation(0, 1, "on")]) == [unsure]  # as sure as can be
