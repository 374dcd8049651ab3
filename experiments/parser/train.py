"""Train the learned parser on FACTUAL: `python -m experiments.parser.train train_safe.csv.gz --out
FOLDER`.

Captions of tests/golden/parser, by which parsers are judged, are left out. A third of the captions
for this training is made of others, see `augment`.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from spacy.language import Language
from torch import Tensor, nn

from experiments.command import run_command
from experiments.parser.augment import Joiner
from experiments.parser.card import write_card
from experiments.parser.examples import Annotated as AnnotatedCaption
from experiments.parser.examples import (
    Example,
    annotate,
    batches,
    choose_mentions,
    collate,
    make_example,
    make_tables,
)
from experiments.parser.gold import captions_to_exclude, learn_names, read_gold
from experiments.parser.network import ParserNetwork, Sizes, loss
from sgpipe.errors import UserError
from sgpipe.recipe import Config
from sgpipe.stages.parse.learned.parser import Tables, number_tables
from sgpipe.stages.parse.rules import load_model

GOLD = Path("tests/golden/parser")


class ParserTraining(Config):
    """Settings of a training. The thresholds were chosen on captions held out of an earlier
    training.
    """

    seed: int = 0
    joined: int = 16_000  # captions made of two
    long_words: int = 10  # captions with at least this many words are seen twice in an epoch
    least_word: int = 2  # occurrences of a word with an embedding
    least_part: int = 3  # and of a verb or rest of a predicate
    epochs: int = 6
    batch_tokens: int = 800
    learning_rate: float = 3e-3
    warm_up: int = 200  # steps
    weight_decay: float = 0.01
    dropout: float = 0.3
    average: float = 0.998  # decay of the moving average of the weights, which is saved
    mention_logit: float = -1.0
    relation_logit: float = 0.0


class Trainer:
    """Trains a network, and keeps a moving average of its weights."""

    def __init__(self, tables: Tables, config: ParserTraining) -> None:
        torch.manual_seed(config.seed)
        self._config = config
        self._choose = random.Random(config.seed)
        self._network = ParserNetwork(tables, Sizes(), config.dropout)
        self._optimizer = torch.optim.AdamW(
            self._network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.average = {name: value.clone() for name, value in self._network.state_dict().items()}

    def fit(self, examples: Sequence[Example], console: Console) -> None:
        """Train for all epochs. The learning rate rises linearly, and then falls linearly to
        zero.
        """
        config = self._config
        total = config.epochs * len(batches(examples, config.batch_tokens, random.Random(0)))
        step = 0
        for epoch in range(config.epochs):
            sums: dict[str, float] = {}
            tokens = 0
            for chosen in batches(examples, config.batch_tokens, self._choose):
                batch = collate(chosen)
                step += 1
                for group in self._optimizer.param_groups:
                    group["lr"] = (
                        config.learning_rate
                        * min(1, step / config.warm_up)
                        * max(0, 1 - step / total)
                    )
                losses = loss(self._network(batch), batch)
                self._step(torch.stack(list(losses.values())).sum() / len(batch.tokens), step)
                tokens += len(batch.tokens)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
            shown = ", ".join(f"{name} {value / tokens:.4f}" for name, value in sums.items())
            console.print(
                f"epoch {epoch + 1} of {config.epochs}, {step} steps: {shown}", soft_wrap=True
            )

    def _step(self, value: Tensor, step: int) -> None:
        self._optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._optimizer.step()
        decay = min(self._config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, current in self._network.state_dict().items():
                self.average[name].lerp_(current, 1 - decay)


def make_examples(
    captions: Sequence[AnnotatedCaption], tables: Tables, config: ParserTraining, model: Language
) -> list[Example]:
    """All captions, long ones twice, and joined ones."""
    joined = Joiner(captions, config.seed).join(config.joined, model)
    long = [item for item in captions if item.words >= config.long_words]
    return [
        make_example(item, tables, choose_mentions(item)) for item in (*captions, *long, *joined)
    ]


def save(
    folder: Path,
    weights: dict[str, Tensor],
    lists: dict[str, list[str]],
    names: dict[str, str],
    config: ParserTraining,
) -> None:
    """Write model.safetensors, in half precision, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in weights.items()},
        folder / "model.safetensors",
    )
    settings: dict[str, Any] = {
        "mention_logit": config.mention_logit,
        "relation_logit": config.relation_logit,
        "tables": {name: texts for name, texts in lists.items() if name != "predicates"},
        "predicates": lists["predicates"],
        "names": names,
    }
    (folder / "config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")


def train_parser(
    data: Path, out: Path, config: ParserTraining, gold: Path, console: Console
) -> None:
    """Train, save and measure a parser.

    Raises:
        UserError: a file is missing, or not of its form.
    """
    judged = gold / "gold_dev.json"
    if not judged.is_file():
        raise UserError(f"--gold {gold} is not a folder with gold_dev.json")
    start = time.process_time()
    model = load_model()
    graphs = read_gold(data, captions_to_exclude(judged))
    captions = annotate(graphs, model)
    names = learn_names(
        (graph, caption.sentence.tree) for graph, caption in zip(graphs, captions, strict=True)
    )
    lists = make_tables(captions, config.least_word, config.least_part)
    tables = number_tables(lists)
    examples = make_examples(captions, tables, config, model)
    console.print(f"{len(examples):,} examples after {time.process_time() - start:.0f} CPU-seconds")
    trainer = Trainer(tables, config)
    trainer.fit(examples, console)
    save(out, trainer.average, lists, names, config)
    write_card(out, config, len(captions), time.process_time() - start, gold, console)


def main(
    data: Annotated[
        Path, typer.Argument(help="captions of FACTUAL: CSV with columns caption and scene_graph")
    ],
    out: Annotated[Path, typer.Option(help="folder for the weights and their card")],
    seed: Annotated[int, typer.Option(min=0, help="seed of the training")] = 0,
    gold: Annotated[
        Path, typer.Option(help="folder of the captions to leave out, and to judge by")
    ] = GOLD,
) -> None:
    """Train the learned parser, measure it, and write its card."""
    torch.set_num_threads(1)
    train_parser(data, out, ParserTraining(seed=seed), gold, Console())


if __name__ == "__main__":
    run_command(main)
