"""Making the miniworld's captioner: `python -m sgpipe.miniworld.train_captioner --out FOLDER`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from sgpipe.miniworld.caption_card import Making, write_card
from sgpipe.miniworld.caption_quality import measure, print_quality
from sgpipe.miniworld.captioner import caption_words, save_captioner, save_tokenizer
from sgpipe.miniworld.captioner_config import CaptionerConfig
from sgpipe.miniworld.captioner_data import draw_lessons
from sgpipe.miniworld.captioner_trainer import Losses, Trainer
from sgpipe.miniworld.command import run_command
from sgpipe.progress import Progress
from sgpipe.recipe_file import load, recipe_folder

_PICTURES_PER_LINE, _STEPS_PER_LINE = 2000, 200


def train_captioner(config: CaptionerConfig, out: Path, progress: Progress) -> Making:
    """Draw pictures, train a captioner on them, and save it in `out`.

    The result depends on `config`, and in its last digits on the machine and its number of threads.
    """
    start = time.process_time()
    tokenizer = save_tokenizer(out, caption_words())

    def drawn(count: int) -> None:
        if count % _PICTURES_PER_LINE == 0 or count == config.pictures:
            progress.say(f"drawn {count:,} of {config.pictures:,} pictures")

    lessons = draw_lessons(config.model, tokenizer, config.pictures, config.seed, drawn)
    trainer = Trainer(config, tokenizer, lessons)
    recent: deque[Losses] = deque(maxlen=_STEPS_PER_LINE)
    for step in range(1, config.steps + 1):
        recent.append(trainer.step())
        if step % _STEPS_PER_LINE == 0 or step == config.steps:
            dense, caption = (fmean(losses) for losses in zip(*recent, strict=True))
            progress.say(
                f"step {step:,} of {config.steps:,}: dense loss {dense:.3f}, caption loss {caption:.4f}, "
                f"{time.process_time() - start:,.0f} CPU-seconds"
            )
    save_captioner(trainer.model, out)
    return Making(time.process_time() - start, trainer.model.num_parameters())


def make_captioner(config: CaptionerConfig, out: Path, images: int, progress: Progress) -> None:
    """Train the captioner, measure it on so many pictures, print that, and write its card."""
    making = train_captioner(config, out, progress)
    quality = measure(str(out), images)
    print_quality(quality, Console())
    write_card(out, config, making, quality)


def captioner_recipe(name: str = "captioner", overrides: Mapping[str, Any] | None = None) -> CaptionerConfig:
    """The recipe of a packaged name or a YAML file. Raises UserError: as `recipe_file.load`."""
    return load(CaptionerConfig, name, recipe_folder() / "miniworld", overrides or {})


def main(
    out: Annotated[Path, typer.Option(help="folder for the captioner")],
    recipe: Annotated[str, typer.Option(help="a recipe of pipelines/miniworld, or a YAML file")] = "captioner",
    steps: Annotated[int | None, typer.Option(min=1, help="instead of the recipe's")] = None,
    pictures: Annotated[int | None, typer.Option(min=1, help="instead of the recipe's")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="instead of the recipe's")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    images: Annotated[int, typer.Option(min=1, help="pictures of the val split to measure it on")] = 500,
) -> None:
    """Train the captioner of the drawn world, measure it, and write its card."""
    torch.set_num_threads(threads)
    given: dict[str, Any] = {"steps": steps, "pictures": pictures, "seed": seed}
    overrides = {key: value for key, value in given.items() if value is not None}
    make_captioner(captioner_recipe(recipe, overrides), out, images, Progress(Console(stderr=True)))


if __name__ == "__main__":
    run_command(main)
