"""Networks as the hub gets them."""

from pathlib import Path
from types import SimpleNamespace

import transformers.utils.hub as hub

from rlip_model import RTagger
from tests.factories import make_tagger


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
