"""The README of an export says where its rows come from, by the identity of the run, and what was left out."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgpipe.export.card import describe_origin
from sgpipe.export.run import export_run
from sgpipe.generation.scoring import CLIP_COLUMN, VLM_COLUMN, score_run
from sgpipe.records import Record
from sgpipe.sources.hugging_face import dataset_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from tests.sgpipe.export.runs import imported, records
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.stats.runs import make_shards

BLIP, TAGGER = "sha256:0123456789abcdef", "sha256:fedcba9876543210"
IDENTITY: dict[str, Any] = {
    **{"sgpipe": "0.1.0", "seed": 1234, "format": "coco", "miniworld": None},
    "source": {"val": {"annotations": "a" * 64, "captions": None}},
    "caption": {"captioner": BLIP, "decoding": "nucleus", "samples": 10, "top_p": 0.9, "scopes": ["image", "box"]},
    "parse": {"model": "en_core_web_sm 3.8.0"},
    "pair": {"candidates": "captions", "prior": None},
    "tag": {"tagger": TAGGER, "threshold": 0.05},
}
CAPTIONED = {"source": {"val": {"annotations": "a" * 64, "captions": "c" * 64}}}
NO_CAPTIONER = {"caption": {"captioner": None}}


def run_of(root: Path, made: list[Record], identity: Mapping[str, Any], **header: Any) -> Path:
    make_shards(root, made, rows=5)
    manifest = Manifest.load(root)
    manifest.run |= {"identity": dict(identity), **header}
    manifest.rewrite()
    return root


def card(root: Path, out: Path, form: str = "hf", **options: Any) -> str:
    url = "https://example.org/" if form in ("label-studio", "instructions") else None
    written = export_run(root, form, out, images_url=url, **options)
    return (written.root / "README.md").read_text(encoding="utf-8")


PRIOR = {"candidates": "prior", "prior": "9" * 64}
EXACT = {"tagger": TAGGER, "precision": 0.9, "calibration": "8" * 64}
MINIWORLD = {"images": 8, "seed": 5, "split": "val"}


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        ({}, f"by a captioner (`{BLIP}`), nucleus sampling, 10 captions of each image and each box", "no tagger"),
        ({"caption": {"captioner": BLIP, "decoding": "beam", "beams": 3}}, "beam search with 3 beams", "nucleus"),
        ({**CAPTIONED, **NO_CAPTIONER}, "those of the source; no captioner ran", "BLIP"),
        ({"pair": {"candidates": "image"}}, "for every pair of boxes", "matched with the boxes by class"),
        ({**NO_CAPTIONER, "pair": PRIOR}, "scene graphs of another dataset (`999", "parsed from the captions"),
        ({"miniworld": MINIWORLD}, "(8 images, seed 5, split `val`)", "annotations of the source"),
        ({"detect": {"detector": "sha256:11", "threshold": 0.3}}, "(`sha256:11`, above score 0.3)", "of the source"),
        ({"tag": EXACT}, "a precision of 0.9 (95% confidence), by calibration `8888888888888888`", "confidence above"),
        ({"tag": {"tagger": None}}, "all candidates; no tagger ran", "scored by"),
        ({"tag": {"method": "overlap"}}, "all candidates whose boxes overlap", "scored by"),
        ({"tag": {"method": "clip", "tagger": "c"}}, "scored by a CLIP model (`c`)", "Tagger ("),
    ],
)
def test_provenance_comes_from_the_identity(changes, present, absent):
    generated, steps, _ = describe_origin({"identity": IDENTITY | changes}, False)
    text = "\n".join(steps)
    assert present in text
    assert absent not in text
    assert "with seed 1234" in text
    assert generated


@pytest.mark.parametrize(
    ("after", "reviewed", "said"),
    [({}, False, "them"), ({}, True, "each of them"), ({"exported": {"threshold": 0.5}}, False, "them"),
     ({"corrected": "a"}, False, "each of them"), ({"exported": {"certificate": {"by": None}}}, False, "each of them")],
)  # fmt: skip
def test_the_card_says_whether_people_reviewed_relations(after, reviewed, said):
    header = {"origin": [IDENTITY], "identity": after}
    assert f"**People have not reviewed {said}.**" in "\n".join(describe_origin(header, reviewed)[1])


def test_other_origins_are_named_or_called_unknown():
    vg = {"import": "visual_genome", "files": {"annotations": "f" * 64}, "options": {}}
    made = [describe_origin({"identity": identity}, False) for identity in (vg, {}, {"tag": 5})]
    assert [generated for generated, *_ in made] == [False, None, True]
    texts = ("of format `visual_genome`", "How the rows were made is not recorded.", "a form that sgpipe does not know")
    assert all(text in "\n".join(steps) for text, (_, steps, _) in zip(texts, made, strict=True))


def test_provenance_survives_scoring_and_the_hub(tmp_path):
    run = run_of(tmp_path / "run", records(8), {**IDENTITY, **CAPTIONED, **NO_CAPTIONER})
    scored = {"model": "ViT-B-32", "weights": None, "contrasts": []}
    asked = {"by": "vlm", "model": "Qwen2.5-VL", "served": True}

    def unscored(record: Record, _: Any) -> list[None]:
        return [None] * len(record.relations)

    score_run(run, tmp_path / "scored", CLIP_COLUMN, lambda: unscored, scored, QUIET)
    score_run(tmp_path / "scored", tmp_path / "judged", VLM_COLUMN, lambda: unscored, asked, QUIET)
    hub = export_run(tmp_path / "judged", "hf", tmp_path / "hub", threshold=0.5).root
    imported(dataset_source(str(hub), "val")[0], hub, tmp_path / "in")
    text = card(tmp_path / "in", tmp_path / "again")
    total, kept = _counts(tmp_path / "run", 0.5)
    origin = ("those of the source; no captioner ran", f"a Relation Tagger (`{TAGGER}`)", "of format `hf`")
    scores = ("(`ViT-B-32`)", "(`Qwen2.5-VL`, behind an endpoint)")
    exported = f"Exported with {kept} of {total} relations: those of confidence 0.5 or more"
    assert [sentence for sentence in (*origin, *scores, exported) if sentence not in text] == []


def _counts(root: Path, threshold: float) -> tuple[int, int]:
    confidences = [item.confidence for record in iter_records(root) for item in record.relations]
    return len(confidences), sum(confidence >= threshold for confidence in confidences)


@pytest.mark.parametrize("form", ["hf", "vg", "psg", "label-studio", "instructions"])
def test_the_threshold_and_what_it_left_out_are_stated(tmp_path, form):
    made = records(20, crowds=False)
    made[0].relations = []
    made[1].fail("caption", "image file not found")
    made[1].relations = []
    run = run_of(tmp_path / "run", made, IDENTITY)
    (tmp_path / "run/.sgpipe").mkdir()
    (tmp_path / "run/.sgpipe/index-val.json").write_text(json.dumps({"images": 30}))
    total, kept = _counts(run, 0.5)
    text = card(run, tmp_path / "out", form, threshold=0.5)
    assert f"| relations | {total} | {kept} |" in text
    assert f"Relations of confidence below 0.5 (`--threshold`): {total - kept} of {total} relations of the run." in text
    assert "The run has 20 of the 30 images of its source." in text
    assert "1 image could not be processed: its row has no relations." in text
    bare = sum(record.ok and not record.relations for record in made)
    assert f"{bare} images of the run have no relations." in text
    related = sum(any(item.confidence >= 0.5 for item in record.relations) for record in made)
    if form == "hf":
        assert f"| images with relations | {sum(bool(r.relations) for r in made)} | {related} |" in text
        return
    assert f"| images | 20 | {sum(record.ok for record in made)} |" in text
    if form == "vg":
        lost = (f"{name} ({sum(len(getattr(r, name)) for r in made):,})" for name in ("captions", "triplets", "pairs"))
        assert f"What the format has no place for: {', '.join(lost)}." in text


def test_names_cannot_break_the_card(tmp_path):
    made = records(4)
    made = [replace(record, relations=[replace(r, predicate="a`b\n## x") for r in record.relations]) for record in made]
    text = card(run_of(tmp_path / "run", made, IDENTITY, name="a\n# b"), tmp_path / "out")
    assert "`a'b ## x` (" in text
    assert "\n# b" not in text
    assert "\n## x" not in text
