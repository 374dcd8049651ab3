"""The miniature R-Tagger follows from its seed."""

from pathlib import Path

import torch

from rlip_model.model import RTagger
from rlip_model.tiny import make_tagger

TEXTS = ["person dog horse no objects riding next to holding under above near behind on in"]


def test_same_seed_same_network(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    make_tagger(tmp_path / "a", TEXTS, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    make_tagger(tmp_path / "b", TEXTS, seed=3)
    make_tagger(tmp_path / "c", TEXTS, seed=4)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]


def test_it_is_small_and_knows_its_words(tmp_path: Path) -> None:
    make_tagger(tmp_path / "tagger", TEXTS)
    tagger = RTagger.from_pretrained(tmp_path / "tagger")
    assert sum(parameter.numel() for parameter in tagger.parameters()) < 3_000_000
    features = tagger.encode_texts(["person", "dog", "riding"])
    assert not torch.equal(features[0], features[1])
    assert tagger.tokenizer.unk_token_id not in tagger.tokenizer("person riding horse")["input_ids"]
