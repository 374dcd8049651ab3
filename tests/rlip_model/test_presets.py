"""The published sizes."""

from pathlib import Path

import pytest
import torch

from rlip_model.checkpoint import build_model
from rlip_model.model import RTagger
from rlip_model.presets import preset
from tests.factories import make_tagger


def parameters(kind: str, backbone: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(preset(kind, backbone)).parameters())


UNREAD_QUERIES = 200 * 3 * 256  # the published R-Tagger holds ParSeD's queries, which it never reads


@pytest.mark.parametrize(
    ("kind", "backbone", "published"),
    [
        ("parseda", "resnet50", 213_700_624),
        ("parseda", "swin_tiny", 214_243_658),
        ("parsed", "resnet50", 206_816_500),
        ("parsed", "swin_tiny", 213_663_278),
        ("tagger", "resnet50", 206_642_164 - UNREAD_QUERIES),
        ("tagger", "swin_tiny", 213_715_758 - UNREAD_QUERIES),
        ("rlipv1", "resnet50", 171_154_420),
    ],
)
def test_as_many_parameters_as_published(kind: str, backbone: str, published: int) -> None:
    assert parameters(kind, backbone) == published


def test_the_tiny_network_is_small_and_tells_words_apart(tmp_path: Path) -> None:
    make_tagger(
        tmp_path / "tagger", ["person dog horse no objects riding next to holding under above near behind on in"]
    )
    tagger = RTagger.from_pretrained(tmp_path / "tagger")
    assert sum(parameter.numel() for parameter in tagger.parameters()) < 3_000_000
    features = tagger.encode_texts(["person", "dog", "riding"])
    assert not torch.equal(features[0], features[1])
    assert tagger.tokenizer.unk_token_id not in tagger.tokenizer("person riding horse")["input_ids"]
