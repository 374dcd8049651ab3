"""Networks that a training starts from."""

from pathlib import Path

import pytest
import torch

from rlip_model.model import ParSeDA, RLIPModel
from rlip_model.trim import kept_rows
from sgpipe.errors import UserError
from sgpipe.new_network import CLASSES, make_start
from sgpipe.train_recipe import ModelConfig, load_train_recipe

TEXTS = ["person", "dog", "riding"]
QUERIES = 200  # as published
TABLES = ("queries.content.weight", "queries.verb_content.weight", "queries.anchors.weight")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A tiny ParSeDA with as many queries as the published one."""
    folder = tmp_path_factory.mktemp("pretrained") / "network"
    make_start(ModelConfig(backbone="miniature", config={"num_queries": QUERIES}), TEXTS, 0, folder)
    return folder


def start(config: ModelConfig, folder: Path) -> RLIPModel:
    make_start(config, TEXTS, 0, folder)
    return CLASSES[config.kind].from_pretrained(folder)


def of_recipe(name: str, init: Path, folder: Path) -> RLIPModel:
    return start(load_train_recipe(name, {"model.init": str(init)}).model, folder)


@pytest.mark.parametrize("name", ["hico", "hico-uc-nf"])
def test_fine_tuning_on_hico_keeps_64_pairs_of_queries(pretrained, tmp_path, name):
    before, network = ParSeDA.from_pretrained(pretrained).state_dict(), of_recipe(name, pretrained, tmp_path / "start")
    assert network.config.num_queries == 128
    rows = kept_rows(QUERIES, 128)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key][rows] if key in TABLES else before[key]), key


@pytest.mark.parametrize("name", ["hico-fewshot-1", "vcoco"])
def test_others_keep_all_that_was_learnt(pretrained, tmp_path, name):
    before, network = ParSeDA.from_pretrained(pretrained), of_recipe(name, pretrained, tmp_path / "start")
    assert network.config.num_queries == QUERIES
    assert network.config.subject_class is not name.startswith("hico-fewshot")
    assert network.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in network.state_dict().items())


def test_an_init_brings_its_own_tokenizer(pretrained, tmp_path):
    make_start(ModelConfig(init=str(pretrained)), ["unheard of"], 0, tmp_path / "start")
    own, init = (ParSeDA.from_pretrained(folder).tokenizer for folder in (tmp_path / "start", pretrained))
    assert own(TEXTS)["input_ids"] == init(TEXTS)["input_ids"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": 400}, "400 queries cannot be kept of 200"),
        ({"num_queries": 7}, "7 queries cannot be kept of 200: an even number"),
        ({"hidden_dim": 32}, "parameters that don't fit config .*'hidden_dim': 32"),
        ({"box_noise": 0.1}, "a ParSeDAConfig has no setting 'box_noise'"),
        ({"gating": "none"}, "gating is 'none', expected one of GLIP"),
    ],
)
def test_settings_that_an_init_cannot_have(pretrained, tmp_path, changes, message):
    with pytest.raises(UserError, match=f"^model: .*{message}") as caught:
        make_start(ModelConfig(init=str(pretrained), config=changes), TEXTS, 0, tmp_path / "start")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize("kind", ["tagger", "parsed"])
def test_an_init_of_another_kind_is_refused(pretrained, tmp_path, kind):
    with pytest.raises(UserError, match=r"^model: .*model_type is 'rlip_parseda', expected 'rlip_"):
        make_start(ModelConfig(kind=kind, init=str(pretrained)), TEXTS, 0, tmp_path / "start")


def test_an_init_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        make_start(ModelConfig(init=str(tmp_path / "nowhere")), TEXTS, 0, tmp_path / "start")


def test_a_new_network_follows_from_the_seed_and_leaves_torch_alone(tmp_path):
    config = ModelConfig(backbone="miniature", config={"num_queries": 12})
    random = torch.get_rng_state()
    make_start(config, TEXTS, 1, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(3)
    make_start(config, TEXTS, 1, tmp_path / "b")
    make_start(config, TEXTS, 2, tmp_path / "c")
    a, b, c = (ParSeDA.from_pretrained(tmp_path / name) for name in "abc")
    assert a.config.num_queries == 12
    assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
    assert not torch.equal(a.scorer.projection.weight, c.scorer.projection.weight)


def test_a_new_network_of_a_published_size_needs_a_text_encoder(tmp_path):
    with pytest.raises(UserError, match=r"^model: a new network of size swin_tiny needs a RoBERTa.*sgpipe convert"):
        make_start(load_train_recipe("hico").model, TEXTS, 0, tmp_path / "start")
