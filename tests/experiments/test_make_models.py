"""Training all models, with far fewer images and steps than the real ones."""

import pytest

from experiments.miniworld import make_models
from experiments.miniworld.captioner import CaptionerConfig
from experiments.miniworld.network_quality import network_recipe
from sgpipe.training.initial_model import CLASSES
from tests.sgpipe.generation.in_process import without_ray


@pytest.mark.slow
def test_all_models_are_trained_evaluated_and_described(tmp_path, monkeypatch, capsys):
    brief = CaptionerConfig(train_images=24, steps=4)
    monkeypatch.setattr(make_models, "captioner_recipe", lambda: brief)
    with without_ray():
        make_models.main(tmp_path / "out", images=8, train_images=16)
    printed = capsys.readouterr().out
    for words in ("10 nucleus samples", "all matching pairs", "HOI mAP"):
        assert words in printed
    weights = tmp_path / "out" / "weights"
    for name in ("captioner", "tagger", "parseda"):
        assert "CPU-seconds" in (weights / name / "README.md").read_text()
    for name in make_models.NETWORKS:
        assert CLASSES[network_recipe(name).model.kind].from_pretrained(weights / name).num_parameters() > 500_000
    assert "\n16 images of the train split" in (weights / "tagger" / "README.md").read_text()
    assert "4 steps with 16 images" in (weights / "captioner" / "README.md").read_text()
