"""The network that a training starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlip_model.model import AutoModel, ParSeDA
from rlip_model.presets import tiny_sizes
from sgpipe.errors import UserError
from sgpipe.training.initial_model import make_initial_model
from sgpipe.training.recipe import ModelConfig
from tests.sgpipe.training.trainings import SIZES

TEXTS = ["person", "traffic light", "riding", "in front of", "kite", "dog", "holding"]


def initial_model(folder: Path, seed: int = 0, **changes: object) -> Any:
    values = {"kind": "tagger", "backbone": "miniature", "config": SIZES, **changes}
    make_initial_model(ModelConfig(**values), TEXTS, seed, folder)
    return AutoModel.from_pretrained(folder)


def test_a_new_network_knows_all_words_and_distinguishes_all_texts(tmp_path: Path) -> None:
    network = initial_model(tmp_path / "start").eval()
    assert "<unk>" not in network.tokenizer.convert_ids_to_tokens(
        network.tokenizer(" ".join(TEXTS))["input_ids"]
    )
    features = torch.nn.functional.normalize(network.encode_texts(TEXTS), dim=1)
    assert (features @ features.T - torch.eye(len(TEXTS))).max() < 0.8


def test_initial_weights_depend_only_on_the_seed(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first = initial_model(tmp_path / "first").state_dict()
    initial_model(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = initial_model(tmp_path / "again").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = AutoModel.from_pretrained(tmp_path / "other").state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_single_settings_of_the_text_encoder_can_change(tmp_path: Path) -> None:
    text = initial_model(
        tmp_path / "new", config={**SIZES, "text_config": {"hidden_dropout_prob": 0.25}}
    ).config.text_config
    tiny = tiny_sizes(len(TEXTS))["text_config"]
    assert (text.hidden_dropout_prob, text.hidden_size) == (0.25, tiny.hidden_size)
    changes = {"text_config": {"attention_probs_dropout_prob": 0.3}}
    text_config = initial_model(
        tmp_path / "again", init=str(tmp_path / "new"), config=changes
    ).config.text_config
    assert (
        text_config.hidden_dropout_prob,
        text_config.attention_probs_dropout_prob,
        text_config.hidden_size,
    ) == (
        0.25,
        0.3,
        64,
    )


def test_queries_are_dropped_pair_by_pair(tmp_path: Path) -> None:
    old = initial_model(tmp_path / "old", kind="parseda")
    new = initial_model(
        tmp_path / "new", kind="parseda", init=str(tmp_path / "old"), config={"num_queries": 4}
    )
    assert isinstance(new, ParSeDA)
    assert new.queries.anchors.weight.equal(old.queries.anchors.weight[[0, 1, 8, 9]])


@pytest.mark.slow
def test_another_fusion_keeps_all_other_weights(tmp_path: Path) -> None:
    old = initial_model(tmp_path / "alif", kind="parseda").state_dict()
    start = {"kind": "parseda", "init": str(tmp_path / "alif")}
    late, second, other, none = (
        initial_model(
            tmp_path / str(number), **start, seed=seed, config={"fusion": fusion}
        ).state_dict()
        for number, (fusion, seed) in enumerate(
            [("after_decoding", 1), ("after_decoding", 1), ("after_decoding", 2), ("none", 1)]
        )
    )
    assert none.keys() == {
        name for name in old if not name.startswith(("encoder.fusion_", "encoder.label_"))
    }
    assert (
        late.keys() - none.keys()
        == {name for name in late if name.startswith("late_fusion.")}
        != set()
    )
    assert all(
        torch.equal(none[name], old[name]) and torch.equal(late[name], old[name]) for name in none
    )
    assert all(torch.equal(late[name], second[name]) for name in late)
    assert not all(torch.equal(late[name], other[name]) for name in late)


@pytest.fixture(scope="module")
def existing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("existing") / "tagger"
    initial_model(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"num_queries": 32}}, "cannot keep 32 of 16 queries"),
        ({"config": {"hidden_dim": 96}}, "do not fit the settings {'hidden_dim': 96}"),
        ({"config": {"boxnoise": 1}}, "has no setting 'boxnoise'"),
        ({"kind": "parseda"}, "is not an RLIPv2-ParSeDA.*'rlip_tagger'"),
    ],
)
def test_invalid_changes_of_an_existing_network(
    existing: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        initial_model(tmp_path / "new", **{"config": {}, "init": str(existing), **changes})
    assert not (tmp_path / "new").exists()
