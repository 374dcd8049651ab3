"""Networks as the hub gets them."""

from pathlib import Path
from types import SimpleNamespace

import transformers.utils.hub as hub
import yaml

from rlip_model import RTagger
from tests.factories import make_tagger


def test_a_saved_network_has_a_card_that_tells_how_to_load_it(tmp_path):
    tagger = make_tagger(tmp_path / "tagger", ["a dog"])
    card = (tmp_path / "tagger/README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "transformers"
    assert "rlip_tagger" in header["tags"]
    assert f"{tagger.num_parameters():,} parameters" in card
    assert 'RTagger.from_pretrained("FOLDER_OR_ID")' in card
    (tmp_path / "tagger/README.md").write_text("mine")
    tagger.save_pretrained(tmp_path / "tagger")
    assert (tmp_path / "tagger/README.md").read_text() == "mine"


def test_all_that_a_network_needs_is_pushed(tmp_path, monkeypatch):
    tagger, pushed = make_tagger(tmp_path / "tagger", ["a dog"]), []
    api = SimpleNamespace(create_repo=lambda name, **options: SimpleNamespace(repo_id=name))
    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    monkeypatch.setattr(hub, "hf_api", lambda: api, raising=False)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *arguments, **options: card)
    monkeypatch.setattr(
        RTagger, "_upload_modified_files", lambda self, folder, name, *_, **__: pushed.extend(Path(folder).iterdir())
    )
    tagger.push_to_hub("me/tagger")
    names = {path.name for path in pushed}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
