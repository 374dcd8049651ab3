"""`sgpipe push` of datasets and models against a stub of the hub, and hub ids wherever a model is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel
from typer.testing import CliRunner

from rlip_model import RTagger
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export.push import model_card
from sgpipe.files.hub import HubModel
from sgpipe.files.model_cache import local_model, pin_model
from sgpipe.recipe import load_recipe, packaged_model, with_model_folders
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.hub_stub import TOKEN, hub  # noqa: F401 - a fixture
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards

datasets = pytest.importorskip("datasets")
TO = "anna/relations"
KEY = f"models/{TO}"
TAGGER = packaged_model("tagger")


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
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())


def test_an_interrupted_upload_goes_on_with_the_same_command(hub, run):  # noqa: F811 - a fixture
    hub.failures = {"/commit/": [0, 409]}  # the card arrives, the data do not
    done = push(run, code=1)
    assert "run the same command again to resume" in done.stderr
    assert set(hub.repositories[TO]) == {".gitattributes", "README.md"}
    assert not (run / ".sgpipe" / "push").exists()
    push(run, "--threshold", "0.9")
    assert len([name for name in hub.repositories[TO] if name.endswith(".parquet")]) == len(Manifest.load(run).shards)
    assert "0.9" in hub.repositories[TO]["README.md"].decode()


def test_what_is_refused_before_anything_is_sent(hub, run, monkeypatch, tmp_path):  # noqa: F811 - a fixture
    for to in ("relations", "a/b/c", "anna/"):
        assert "expected USER/NAME" in push(run, to=to, code=2).stderr
    assert "the hub refuses this user (403)" in push(run, to="berta/relations", code=2).stderr
    for status, code, message in ((401, 2, "refuses this user"), (403, 2, "refuses"), (500, 1, "500")):
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
    assert "HF_HUB_OFFLINE" in push(run, code=2).stderr
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
    assert (metadata["license"], {"sgpipe", "rlip_tagger"} <= {*metadata["tags"]}) == ("apache-2.0", True)
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
            assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


def test_the_card_says_what_a_network_was_trained_on(hub, trained_tagger, tmp_path):  # noqa: F811 - a fixture
    evaluation = tmp_path / "hico.json"
    evaluation.write_text(json.dumps({"benchmark": "HICO-DET", "summary": {"full": 0.33}}))
    push(trained_tagger, "--evaluation", evaluation)
    assert set(hub.repositories[KEY]) & {"training.json", "optimizer.safetensors"} == set()
    card = hub.repositories[KEY]["README.md"].decode()
    recipe = yaml.safe_load((trained_tagger / "recipe.yaml").read_text())
    assert all(part["shards"] not in card for part in recipe["data"]["train"])
    assert f"lr: {recipe['optimisation']['lr']}" in card
    for text in ("### Labels of", "| full | 0.33 |", "Not stated.", "| recall |", f'from_pretrained("{TO}")'):
        assert text in card
    assert "FOLDER_OR_ID" not in card
    run = json.loads((trained_tagger / ".training" / "run.json").read_text())
    shown = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert [*shown["data"]] == [name for name in run["data"] if name not in ("train", "val")]
    own = {"notes.txt": b"1", "my_eval.json": b"{}"}
    hub.repositories[KEY] |= own | {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}"}
    before = {*hub.repositories[KEY]}
    push(trained_tagger)
    assert before - {*hub.repositories[KEY]} == {"model-00001-of-00002.safetensors", "model.safetensors.index.json"}


def test_the_card_keeps_what_its_owner_wrote(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    readme, result = tmp_path / "README.md", tmp_path / "result.json"
    readme.write_text("---\nlicense: mit\ntags: vision\n---\n# Mine\n\n## Evaluation\n\nold\n\n## Citation\n\nme\n")
    card = model_card(tmp_path, "anna/model", None, ())
    assert yaml.safe_load(card.split("---\n")[1]) == {"license": "mit", "tags": ["vision", "sgpipe", "model"]}
    assert [text in card for text in ("# Mine", "## Citation\n\nme", "`mit`.", "old")] == [True, True, True, False]
    result.write_text('{"summary": [1, 2]}')
    with pytest.raises(UserError, match=r"result\.json: `summary` is not a JSON object"):
        model_card(tmp_path, TO, None, [result])
    for damaged in (b"---\na: [\n---\n", b"---\n- a\n---\n", b"\xe9", b"---\n" + b"[" * 9999):
        readme.write_bytes(damaged)
        with pytest.raises(UserError, match=r"README\.md cannot be read as a card of the hub: .+$"):
            model_card(tmp_path, TO, None, ())


def test_what_is_refused_in_one_line(hub, run, tmp_path, drawn_run):  # noqa: F811 - a fixture
    others = "data/train-00000-of-00001.parquet"
    hub.repositories[TO], hub.repositories[KEY] = ({"README.md": b"# mine", name: b"1"} for name in (others, "a.bin"))
    hub.private |= {TO: False, KEY: False}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    for place, options, message in (
        (run, (), f"has files that sgpipe did not push (README.md, {others})"),
        (TAGGER, (), "has files that sgpipe did not push (README.md, a.bin)"),
        (tmp_path / "old", (), "has no model.safetensors"),
        (tmp_path, (), "is not an sgpipe run"),
        (TAGGER, ("--embed",), "is a model: only"),
        (drawn_run, ("--license", "mit"), "are for models"),
        (TAGGER, ("--evaluation", TAGGER / "model.safetensors"), "cannot be read as a JSON object"),
    ):
        assert message in push(place, *options, code=2).stderr
    assert hub.commits == []
    missing = "the model anna/nothing is not on the hub, or is private"
    for command in (("predict", "anna/nothing", "--data", drawn_run), ("generate", "--tagger", "anna/nothing")):
        assert missing in invoke(*command, "--out", tmp_path / "new.json", code=2).stderr


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_the_commit_of_its_models(hub, tmp_path):  # noqa: F811 - a fixture
    push(TAGGER)
    first, out = pin_model(TO), tmp_path / "run"
    settings = ("--set", "source.miniworld.images=4", "--set", "engine.unit_size=2")
    invoke("generate", "--tagger", f"{TO}@main", *settings, "--out", out, "--limit", 2)
    hub.repositories[KEY]["config.json"] += b" "  # a later commit, while the cache has the first one
    assert pin_model(TO) == first
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    assert pin_model(TO) != first
    invoke("generate", "--tagger", f"{TO}@main", *settings, "--out", out)
    manifest = Manifest.load(out)
    assert manifest.run["identity"]["tag"]["tagger"] == first
    assert sum(shard.rows for shard in manifest.shards) == 4
    invoke("generate", *settings, "--out", tmp_path / "own")
    assert [each.counts for each in manifest.shards] == [each.counts for each in Manifest.load(tmp_path / "own").shards]


def test_what_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tagger").mkdir(parents=True)
    names = {"a/b": ("a/b", None), "a/b@v1": ("a/b", "v1")}
    names |= dict.fromkeys(("runs/tagger", "a", "a/b/c", "a/b.pth", "./a", "hf-hub:a/b", "s3://a/b"))
    found = {name: HubModel.parse(name) for name in names}
    assert {name: each and (each.name, each.revision) for name, each in found.items()} == names
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert pin_model("a/b") == "a/b"  # who loads it says that it is missing
    first, second, third = (f"a/b@{letter * 40}" for letter in "123")
    for name, before, pinned in (
        ("a/b@v1", first, first),
        (second, first, second),
        ("a/b", f"aa/b@{'3' * 40}", "a/b"),
        ("a/b", f"x/{third} {first}", first),
    ):
        assert pin_model(name, json.dumps({"tagger": before})) == pinned
    recipe = load_recipe("miniworld", {"tag.tagger": "a/b@v1", "ground.detector": "a/b@v2"})
    identity = {"tag": {"tagger": first}, "ground": {"detector": second}}
    for resumes, expected in ((True, (first, second)), (False, ("a/b@v1", "a/b@v2"))):
        made = with_model_folders(recipe, identity, resumes)
        assert (made.tag.tagger, made.ground.detector) == expected
    with pytest.raises(UserError, match=r"^no such folder: a/b, and the model a/b is not in the hub's cache"):
        local_model("a/b")
