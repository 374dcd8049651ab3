"""The command that trains the captioner: its output, and a card with the measured figures."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.miniworld.caption_quality import CaptionQuality, measure, print_quality
from experiments.miniworld.captioner import CaptionerConfig, CaptionerModelConfig
from experiments.miniworld.cards import write_captioner_card
from experiments.miniworld.train_captioner import train_captioner
from sgpipe.utils.console import Progress

SMALL = CaptionerModelConfig(
    image_size=32, patch_size=8, vision_width=32, vision_layers=1, text_width=32, text_layers=1, heads=2
)
CONFIG = CaptionerConfig(model=SMALL, train_images=5, steps=3, batch_size=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, CaptionQuality]:
    """A folder with a barely trained captioner and its card, the messages of its training, and its quality."""
    folder = tmp_path_factory.mktemp("trained")
    messages = io.StringIO()
    cost = train_captioner(CONFIG, folder, Progress(Console(file=messages, width=200)))
    quality = measure(str(folder), 3, counted=300)
    write_captioner_card(folder, CONFIG, cost, quality)
    return folder, messages.getvalue(), quality


def test_quality_has_a_row_per_way_to_caption(trained: tuple[Path, str, CaptionQuality]) -> None:
    _, _, quality = trained
    greedy, samples, shuffled, best, ten = quality.rows
    assert [row.correct.total for row in (greedy, samples, shuffled, best)] == [3, 30, 3, 3]
    assert ten.correct.total <= 30
    for row in quality.rows:
        assert row.composed.total == greedy.composed.total < row.everything.total
    # Knowing the objects says more than not having learned anything, and ten guesses cover more than one.
    assert best.correct.value > greedy.correct.value
    assert ten.composed.value > best.composed.value


def test_the_card_states_the_recipe_and_the_measured_figures(trained: tuple[Path, str, CaptionQuality]) -> None:
    folder, _, quality = trained
    card = (folder / "README.md").read_text(encoding="utf-8")
    for row in quality.rows:
        assert (
            f"| {row.name} | {row.correct.value:.1%} | {row.composed.value:.1%} | {row.everything.value:.1%} |" in card
        )
    assert "On the first 3 images of the val split" in card
    assert "the first 5 images of the train split" in card
    assert "patch_size: 8" in card
    printed = io.StringIO()
    print_quality(quality, Console(file=printed, width=100))
    for row in quality.rows:
        assert row.name in printed.getvalue()
