"""A miniature R-Tagger, built once."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from rlip_model.config import Fusion
from rlip_model.model import ParSeD, ParSeDA, RTagger
from rlip_model.queries import GivenPairs
from tests.factories import make_tagger, tiny_config

TEXTS = (
    "person dog horse bench no objects",
    "riding on, next to, holding, sitting in front of, looking at, wearing, under the",
)


@pytest.fixture(scope="session", autouse=True)
def models_loaded_once(loaded_once: None) -> None:
    """As in the tests of sgpipe."""


@pytest.fixture(scope="session")
def tagger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    make_tagger(folder, TEXTS, seed=1)
    return folder


@pytest.fixture(scope="session")
def loaded_tagger(tagger_folder: Path) -> RTagger:
    return RTagger.from_pretrained(tagger_folder).eval()


@pytest.fixture
def tagger(loaded_tagger: RTagger) -> RTagger:
    """A copy, which tests may change."""
    return deepcopy(loaded_tagger)


def tiny_network(
    kind: type[ParSeD] | type[ParSeDA] | type[RTagger], fusion: Fusion = "alif", **changes: object
) -> ParSeD | ParSeDA | RTagger:
    """All parts, random: an untrained network of any kind, in evaluation mode."""
    sizes = tiny_config(100).to_dict()
    del sizes["model_type"]
    if kind is not RTagger:
        for own_to_tagger in ("box_noise", "label_noise", "label_noise_range"):
            del sizes[own_to_tagger]
    torch.manual_seed(0)
    return kind(kind.config_class(**{**sizes, "fusion": fusion, **changes})).eval()


def random_pairs(count: int, seed: int = 0) -> GivenPairs:
    generator = torch.Generator().manual_seed(seed + 100 * count)
    boxes = 0.1 + 0.8 * torch.rand(2, count, 4, generator=generator)
    classes = torch.randint(0, 4, (2, count), generator=generator)
    return GivenPairs(boxes[0], boxes[1], classes[0], classes[1])
