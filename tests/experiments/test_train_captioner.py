"""The command that makes the captioner: what it leaves behind, and that the card says what was measured."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments.miniworld.caption_quality import Quality, measure, print_quality
from experiments.miniworld.captioner import CaptionerConfig, ModelConfig
from experiments.miniworld.cards import write_card
from experiments.miniworld.train_captioner import train_captioner
from sgpipe.errors import UserError
from sgpipe.utils.console import Progress

SMALL = ModelConfig(
    image_size=32, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1, heads=2
)
CONFIG = CaptionerConfig(model=SMALL, train_images=5, steps=3, batch_size=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Quality]:
    """A folder with an all but untrained captioner and its card, what its training said, and how good it is."""
    folder = tmp_path_factory.mktemp("trained")
    said = io.StringIO()
    making = train_captioner(CONFIG, folder, Progress(Console(file=said, width=200)))
    quality = measure(str(folder), 3, counted=300)
    write_card(folder, CONFIG, making, quality)
    return folder, said.getvalue(), quality


def test_training_says_how_far_it_is(trained: tuple[Path, str, Quality]) -> None:
    _, said, _ = trained
    assert "drawn 5 of 5 images" in said
    assert "step 3 of 3: dense loss" in said


def test_quality_has_a_row_per_way_to_caption(trained: tuple[Path, str, Quality]) -> None:
    _, _, quality = trained
    greedy, samples, shuffled, best, ten = quality.rows
    assert [row.true.total for row in (greedy, samples, shuffled, best)] == [3, 30, 3, 3]
    assert ten.true.total <= 30
    for row in quality.rows:
        assert row.composed.total == greedy.composed.total < row.everything.total
    # Knowing the objects says more than not having learned anything, and ten guesses cover more than one.
    assert best.true.value > greedy.true.value
    assert ten.composed.value > best.composed.value


def test_the_card_says_what_was_measured_and_how_it_was_made(trained: tuple[Path, str, Quality]) -> None:
    folder, _, quality = trained
    card = (folder / "README.md").read_text(encoding="utf-8")
    for row in quality.rows:
        assert f"| {row.name} | {row.true.value:.1%} | {row.composed.value:.1%} | {row.everything.value:.1%} |" in card
    assert "On the first 3 images of the val split" in card
    assert "the first 5 images of the train split" in card
    assert "patch_size: 8" in card
    printed = io.StringIO()
    print_quality(quality, Console(file=printed, width=100))
    for row in quality.rows:
        assert row.name in printed.getvalue()


def test_without_its_optimizer_it_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"torch 2\.9 or newer"):
        train_captioner(CONFIG, tmp_path, Progress(Console(file=io.StringIO())))
