"""A miniature R-Tagger, built once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlip_model.model import RTagger
from rlip_model.queries import Pairs
from rlip_model.tiny import make_tagger

TEXTS = (
    "person dog horse bench no objects",
    "riding on, next to, holding, sitting in front of, looking at, wearing, under the",
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tagger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    make_tagger(folder, TEXTS, seed=1)
    return folder


@pytest.fixture
def tagger(tagger_folder: Path) -> RTagger:
    return RTagger.from_pretrained(tagger_folder).eval()


def random_pairs(count: int, labels: int = 4, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed + 100 * count)
    boxes = 0.1 + 0.8 * torch.rand(2, count, 4, generator=generator)
    classes = torch.randint(0, labels, (2, count), generator=generator)
    return Pairs(boxes[0], boxes[1], classes[0], classes[1])
