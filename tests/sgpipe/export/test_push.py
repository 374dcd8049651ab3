"""Cards, which say where rows come from and what was left out, and `sgpipe push` against a stub of
the hub.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from transformers import AutoModel
from typer.testing import CliRunner

from rlip_model import RTagger
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export.hugging_face import describe_origin
from sgpipe.export.push import model_card
from sgpipe.export.run import export_run
from sgpipe.files.hub import HubModel
from sgpipe.files.model_cache import local_model, pin_model
from sgpipe.generation.scoring import score_run
from sgpipe.recipe import load_recipe, packaged_model, with_model_folders
from sgpipe.records import Record
from sgpipe.sources.hub import dataset_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import CLIP_SCORE, VLM_SCORE
from tests.sgpipe.export.hub_stub import TOKEN, hub  # noqa: F401 - a fixture
from tests.sgpipe.export.runs import imported, records
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

BLIP = "sha256:0123456789abcdef"
NETWORK = "sha256:fedcba9876543210"
IDENTITY: dict[str, Any] = {
    "sgpipe": "0.1.0",
    "seed": 1234,
    "format": "coco",
    "miniworld": None,
    "source": {"val": {"annotations": "a" * 64, "captions": None}},
    "caption": {
        "captioner": BLIP,
        "decoding": "nucleus",
        "samples": 10,
        "top_p": 0.9,
        "scopes": ["image", "box"],
    },
    "parse": {"model": "en_core_web_sm 3.8.0"},
    "pair": {"candidates": "captions", "prior": None},
    "tag": {"tagger": NETWORK, "threshold": 0.05},
}
CAPTIONED = {"source": {"val": {"annotations": "a" * 64, "captions": "c" * 64}}}
NO_CAPTIONER = {"caption": {"captioner": None}}
PRIOR = {"candidates": "prior", "prior": "9" * 64}
EXACT = {"tagger": NETWORK, "precision": 0.9, "calibration": "8" * 64}
MINIWORLD = {"images": 8, "seed": 5, "split": "val"}
TO = "anna/relations"
KEY = f"models/{TO}"
TAGGER = packaged_model("tagger")


def run_of(
    root: Path, labelled: list[Record], identity: Mapping[str, Any], **header: object
) -> Path:
    make_shards(root, labelled, rows=5)
    manifest = Manifest.load(root)
    manifest.run |= {"identity": dict(identity), **header}
    manifest.rewrite()
    return root


def card(root: Path, out: Path, form: str = "hf", **options: object) -> str:
    url = "https://example.org/" if form in ("label-studio", "instructions") else None
    written = export_run(root, form, out, images_url=url, **options)
    return (written.root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "present", "absent"),
    [
        (
            {},
            f"by a captioner (`{BLIP}`), nucleus sampling, 10 captions of each image and each box",
            "no tagger",
        ),
        ({**CAPTIONED, **NO_CAPTIONER}, "those of the source; no captioner ran", "BLIP"),
        (
            {**NO_CAPTIONER, "pair": PRIOR},
            "scene graphs of another dataset (`999",
            "parsed from the captions",
        ),
        ({"miniworld": MINIWORLD}, "(8 images, seed 5, split `val`)", "annotations of the source"),
        (
            {"detect": {"detector": "sha256:11", "threshold": 0.3}},
            "(`sha256:11`, above score 0.3)",
            "of the source",
        ),
        (
            {"tag": EXACT},
            "a precision of 0.9 (95% confidence), by calibration `8888888888888888`",
            "confidence above",
        ),
        ({"tag": {"tagger": None}}, "all candidates; no tagger ran", "scored by"),
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
    ("after", "reviewed", "unreviewed"),
    [({}, False, "them"), ({}, True, "each of them"), ({"exported": {"threshold": 0.5}}, False, "them"),
     ({"corrected": "a"}, False, "each of them"), ({"exported": {"certificate": {"by": None}}}, False, "each of them")],
)  # fmt: skip
def test_the_card_says_whether_people_reviewed_relations(after, reviewed, unreviewed):
    header = {"origin": [IDENTITY], "identity": after}
    assert f"**People have not reviewed {unreviewed}.**" in "\n".join(
        describe_origin(header, reviewed)[1]
    )


def test_other_origins_are_named_or_called_unknown():
    vg = {"import": "visual_genome", "files": {"annotations": "f" * 64}, "options": {}}
    described = [
        describe_origin({"identity": identity}, False) for identity in (vg, {}, {"tag": 5})
    ]
    assert [generated for generated, *_ in described] == [False, None, True]
    texts = (
        "of format `visual_genome`",
        "How the rows were made is not recorded.",
        "a form that sgpipe does not know",
    )
    assert all(
        text in "\n".join(steps) for text, (_, steps, _) in zip(texts, described, strict=True)
    )


def test_provenance_survives_scoring_and_the_hub(tmp_path):
    run = run_of(tmp_path / "run", records(8), {**IDENTITY, **CAPTIONED, **NO_CAPTIONER})
    scored = {"model": "ViT-B-32", "weights": None, "contrasts": []}
    asked = {"by": "vlm", "model": "Qwen2.5-VL", "served": True}

    def unscored(record: Record, _: Any) -> list[None]:
        return [None] * len(record.relations)

    score_run(run, tmp_path / "scored", CLIP_SCORE, lambda: unscored, scored, QUIET)
    score_run(tmp_path / "scored", tmp_path / "judged", VLM_SCORE, lambda: unscored, asked, QUIET)
    out = export_run(tmp_path / "judged", "hf", tmp_path / "hub", threshold=0.5).root
    imported(dataset_source(str(out), "val")[0], out, tmp_path / "in")
    text = card(tmp_path / "in", tmp_path / "again")
    total, confident = _counts(tmp_path / "run", 0.5)
    origin = (
        "those of the source; no captioner ran",
        f"a Relation Tagger (`{NETWORK}`)",
        "of format `hf`",
    )
    scores = ("(`ViT-B-32`)", "(`Qwen2.5-VL`, behind an endpoint)")
    exported = f"Exported with {confident} of {total} relations: those of confidence 0.5 or more"
    assert [sentence for sentence in (*origin, *scores, exported) if sentence not in text] == []


def _counts(root: Path, threshold: float) -> tuple[int, int]:
    confidences = [item.confidence for record in iter_records(root) for item in record.relations]
    return len(confidences), sum(confidence >= threshold for confidence in confidences)


@pytest.mark.parametrize("form", ["hf", "vg", "psg", "label-studio", "instructions"])
def test_the_threshold_and_what_it_left_out_are_stated(tmp_path, form):
    labelled = records(20, crowds=False)
    labelled[0].relations = []
    labelled[1].fail("caption", "image file not found")
    labelled[1].relations = []
    run = run_of(tmp_path / "run", labelled, IDENTITY, source_images=30)
    total, confident = _counts(run, 0.5)
    text = card(run, tmp_path / "out", form, threshold=0.5)
    assert f"| relations | {total} | {confident} |" in text
    assert (
        f"Relations of confidence below 0.5 (`--threshold`): {total - confident} of {total} relations of"
        " the run." in text
    )
    assert "The run has 20 of the 30 images of its source." in text
    assert "1 image could not be processed: its row has no relations." in text
    bare = sum(record.ok and not record.relations for record in labelled)
    assert f"{bare} images of the run have no relations." in text
    related = sum(any(item.confidence >= 0.5 for item in record.relations) for record in labelled)
    if form == "hf":
        assert (
            f"| images with relations | {sum(bool(r.relations) for r in labelled)} | {related} |"
            in text
        )
        return
    assert f"| images | 20 | {sum(record.ok for record in labelled)} |" in text
    if form == "vg":
        lost = (
            f"{name} ({sum(len(getattr(r, name)) for r in labelled):,})"
            for name in ("captions", "triplets", "pairs")
        )
        assert f"What the format has no place for: {', '.join(lost)}." in text


def test_names_cannot_break_the_card(tmp_path):
    labelled = records(4)
    labelled = [
        replace(record, relations=[replace(r, predicate="a`b\n## x") for r in record.relations])
        for record in labelled
    ]
    text = card(run_of(tmp_path / "run", labelled, IDENTITY, name="a\n# b"), tmp_path / "out")
    assert "`a'b ## x` (" in text
    assert "\n# b" not in text
    assert "\n## x" not in text


@pytest.fixture
def run(tmp_path) -> Path:
    return make_shards(tmp_path / "run", records(20), rows=6)


def invoke(*arguments: object, code: int = 0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    assert TOKEN not in done.output
    assert "Traceback" not in done.output
    return done


def push(place: Path, *options: object, code: int = 0, to: str = TO):
    return invoke("push", place, "--to", to, *options, code=code)


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_the_hub_has_what_export_writes(hub, run, tmp_path, monkeypatch, mode):  # noqa: F811 - a fixture
    hub.mode = mode
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", mode == "lfs")
    done = push(run, "--json")
    printed = json.loads(done.stdout)
    assert printed["url"] == f"{hub.url}/datasets/{TO}"
    assert printed["private"] is hub.private[TO] is True
    folder = tmp_path / "hub"
    for name, data in hub.repositories[TO].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert sum(map(len, loaded.values())) == 20
    assert TO in (folder / "README.md").read_text()
    assert not (run / ".sgpipe" / "push").exists()
    assert TOKEN not in "".join(
        path.read_text(errors="replace") for path in run.rglob("*") if path.is_file()
    )


def test_an_interrupted_upload_goes_on_with_the_same_command(hub, run):  # noqa: F811 - a fixture
    hub.failures = {"/commit/": [0, 409]}  # the card arrives, the data do not
    done = push(run, code=1)
    assert "run the same command again to resume" in done.stderr
    assert set(hub.repositories[TO]) == {".gitattributes", "README.md"}
    assert not (run / ".sgpipe" / "push").exists()
    push(run, "--threshold", "0.9")
    assert len([name for name in hub.repositories[TO] if name.endswith(".parquet")]) == len(
        Manifest.load(run).shards
    )
    assert "0.9" in hub.repositories[TO]["README.md"].decode()


def test_what_is_refused_before_anything_is_sent(hub, run, monkeypatch, tmp_path):  # noqa: F811 - a fixture
    for to in ("relations", "a/b/c", "anna/"):
        assert "expected USER/NAME" in push(run, to=to, code=2).stderr
    assert "the hub refuses this user (403)" in push(run, to="berta/relations", code=2).stderr
    for status, code, message in (
        (401, 2, "refuses this user"),
        (403, 2, "refuses"),
        (500, 1, "500"),
    ):
        hub.failures = {"datasets": [status]}
        assert message in push(run, code=code).stderr
    assert not (run / ".sgpipe" / "push").exists()
    assert "is not an sgpipe run" in push(tmp_path, code=2).stderr
    assert hub.repositories == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "log in with `hf auth login`, or set HF_TOKEN" in push(run, code=2).stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place in (run, TAGGER):
        assert "HF_HUB_OFFLINE is set: unset it" in push(place, code=2).stderr
    assert hub.commits == []
    assert Manifest.load(run).shards


@pytest.mark.slow
def test_a_model_comes_back_bit_for_bit_online_and_from_the_cache(hub, monkeypatch):  # noqa: F811 - a fixture
    printed = json.loads(push(TAGGER, "--license", "apache-2.0", "--json").stdout)
    assert printed["url"] == f"{hub.url}/{TO}"
    assert printed["private"] is hub.private[KEY] is True
    files = hub.repositories[KEY]
    assert not [name for name in files if name.endswith((".bin", ".py", ".pt", ".yaml"))]
    metadata = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (metadata["license"], {"sgpipe", "rlip_tagger"} <= {*metadata["tags"]}) == (
        "apache-2.0",
        True,
    )
    pinned = pin_model(TO)
    assert pinned == f"{TO}@{hub._sha(KEY)}"
    expected = RTagger.from_pretrained(TAGGER).state_dict()
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert pin_model(TO) == pinned
        revision = pinned.partition("@")[2]
        for loaded in (
            RTagger.from_pretrained(local_model(TO)),
            RTagger.from_pretrained(local_model(pinned)),
            AutoModel.from_pretrained(TO),
            AutoModel.from_pretrained(TO, revision=revision, output_loading_info=True)[0],
        ):
            assert isinstance(loaded, RTagger)
            assert loaded.tokenizer is not None
            assert all(
                torch.equal(value, expected[key]) for key, value in loaded.state_dict().items()
            )


def test_the_card_says_what_a_network_was_trained_on(hub, trained_tagger, tmp_path):  # noqa: F811 - a fixture
    evaluation = tmp_path / "hico.json"
    evaluation.write_text(json.dumps({"benchmark": "HICO-DET", "summary": {"full": 0.33}}))
    push(trained_tagger, "--evaluation", evaluation)
    assert set(hub.repositories[KEY]) & {"training.json", "optimizer.safetensors"} == set()
    card = hub.repositories[KEY]["README.md"].decode()
    recipe = yaml.safe_load((trained_tagger / "recipe.yaml").read_text())
    assert all(part["shards"] not in card for part in recipe["data"]["train"])
    assert f"lr: {recipe['optimisation']['lr']}" in card
    for text in (
        "### Labels of",
        "| full | 0.33 |",
        "Not stated.",
        "| recall |",
        f'from_pretrained("{TO}")',
    ):
        assert text in card
    assert "FOLDER_OR_ID" not in card
    run = json.loads((trained_tagger / ".training" / "run.json").read_text())
    shown = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert [*shown["data"]] == [name for name in run["data"] if name not in ("train", "val")]
    files_of_owner = {"notes.txt": b"1", "my_eval.json": b"{}"}
    hub.repositories[KEY] |= files_of_owner | {
        "model-00001-of-00002.safetensors": b"1",
        "model.safetensors.index.json": b"{}",
    }
    before = {*hub.repositories[KEY]}
    push(trained_tagger)
    assert before - {*hub.repositories[KEY]} == {
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    }


def test_the_card_keeps_what_its_owner_wrote(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    readme = tmp_path / "README.md"
    result = tmp_path / "result.json"
    readme.write_text(
        "---\nlicense: mit\ntags: vision\n---\n# Mine\n\n## Evaluation\n\nold\n\n##"
        " Citation\n\nme\n"
    )
    card = model_card(tmp_path, "anna/model", None, ())
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "license": "mit",
        "tags": ["vision", "sgpipe", "model"],
    }
    assert [text in card for text in ("# Mine", "## Citation\n\nme", "`mit`.", "old")] == [
        True,
        True,
        True,
        False,
    ]
    readme.write_text(card.replace("is not recorded", "was said"))
    second = model_card(tmp_path, "anna/model", None, ())
    assert list(map(second.count, ("\n## ", "was said", "`mit`."))) == [4, 1, 1]
    result.write_text('{"summary": [1, 2]}')
    with pytest.raises(UserError, match=r"result\.json: `summary` is not a JSON object"):
        model_card(tmp_path, TO, None, [result])
    for damaged in (b"---\na: [\n---\n", b"---\n- a\n---\n", b"\xe9", b"---\n" + b"[" * 9999):
        readme.write_bytes(damaged)
        with pytest.raises(UserError, match=r"README\.md cannot be read as a card of the hub: .+$"):
            model_card(tmp_path, TO, None, ())


def test_what_is_refused_in_one_line(hub, run, tmp_path, drawn_run):  # noqa: F811 - a fixture
    foreign = "data/train-00000-of-00001.parquet"
    hub.repositories[TO], hub.repositories[KEY] = (
        {"README.md": b"# mine", name: b"1"} for name in (foreign, "a.bin")
    )
    hub.private |= {TO: False, KEY: False}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    for place, options, message in (
        (run, (), f"has files that sgpipe did not push (README.md, {foreign})"),
        (TAGGER, (), "has files that sgpipe did not push (README.md, a.bin)"),
        (tmp_path / "old", (), "has no model.safetensors"), (tmp_path, (), "is not an sgpipe run"),
        (TAGGER, ("--embed",), "is a model: only"), (drawn_run, ("--license", "mit"), "are for models"),
        (TAGGER, ("--evaluation", TAGGER / "model.safetensors"), "cannot be read as a JSON object"),
    ):  # fmt: skip
        assert message in push(place, *options, code=2).stderr
    assert hub.commits == []
    missing = "the model anna/nothing is not on the hub, or is private"
    for command in (
        ("predict", "anna/nothing", "--data", drawn_run),
        ("generate", "--tagger", "anna/nothing"),
    ):
        assert missing in invoke(*command, "--out", tmp_path / "new.json", code=2).stderr


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_the_commit_of_its_models(hub, tmp_path):  # noqa: F811 - a fixture
    push(TAGGER)
    first = pin_model(TO)
    out = tmp_path / "run"
    settings = ("--set", "source.miniworld.images=4", "--set", "engine.unit_size=2")
    invoke("generate", "--tagger", f"{TO}@main", *settings, "--out", out, "--limit", 2)
    # a later commit, while the cache has the first one
    hub.repositories[KEY]["config.json"] += b" "
    assert pin_model(TO) == first
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    assert pin_model(TO) != first
    invoke("generate", "--tagger", f"{TO}@main", *settings, "--out", out)
    manifest = Manifest.load(out)
    assert manifest.run["identity"]["tag"]["tagger"] == first
    assert sum(values_of(manifest.shards, "rows")) == 4
    invoke("generate", *settings, "--out", tmp_path / "own")
    assert values_of(manifest.shards, "counts") == values_of(
        Manifest.load(tmp_path / "own").shards, "counts"
    )


def test_what_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tagger").mkdir(parents=True)
    names = {"a/b": ("a/b", None), "a/b@v1": ("a/b", "v1")}
    names |= dict.fromkeys(
        ("runs/tagger", "a", "a/b/c", "a/b.pth", "./a", "hf-hub:a/b", "s3://a/b")
    )
    models = {name: HubModel.parse(name) for name in names}
    assert {name: model and (model.name, model.revision) for name, model in models.items()} == names
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert pin_model("a/b") == "a/b"  # who loads it says that it is missing
    first, second, third = (f"a/b@{letter * 40}" for letter in "123")
    for name, before, pinned in (
        ("a/b@v1", first, first), (second, first, second), ("a/b", f"aa/b@{'3' * 40}", "a/b"),
        ("a/b", f"x/{third} {first}", first),
    ):  # fmt: skip
        assert pin_model(name, json.dumps({"tagger": before})) == pinned
    recipe = load_recipe("miniworld", {"tag.tagger": "a/b@v1", "ground.detector": "a/b@v2"})
    identity = {"tag": {"tagger": first}, "ground": {"detector": second}}
    for resumes, expected in ((True, (first, second)), (False, ("a/b@v1", "a/b@v2"))):
        changed = with_model_folders(recipe, identity, resumes)
        assert (changed.tag.tagger, changed.ground.detector) == expected
    with pytest.raises(
        UserError, match=r"^no such folder: a/b, and the model a/b is not in the hub's cache"
    ):
        local_model("a/b")
