"""Training the learned parser: reading and aligning gold graphs, joining captions, and the network
in both forms.
"""

import csv
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments.parser import train
from experiments.parser.examples import annotate, collate, make_example, make_tables
from experiments.parser.gold import captions_to_exclude, read_gold
from experiments.parser.network import ParserNetwork, Sizes, loss
from sgpipe.errors import UserError
from sgpipe.stages.parse.learned.parser import Network, number_tables
from sgpipe.stages.parse.rules import load_model
from tests.values import values_of

pytestmark = pytest.mark.slow

ROWS = [
    ("a man riding a brown horse", "( man , ride , horse ) , ( horse , is , brown )"),
    ("horse on a beach .", "( horse , on , beach )"),
    ("a guy sitting on top of a picnic table", "( person , sit on top of , picnic table )"),
    ("two windows side by side", "( windows , side by side with , windows )"),
    ("man in a hat", "( man , wear , hat )"), ("the tail of a cat", "( cat , have , tail )"), ("a man", "( man )"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("factual") / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["caption", "scene_graph"])
        writer.writerows(ROWS)
    return path


@pytest.fixture(scope="module")
def annotated(data):
    return annotate(read_gold(data), load_model())


def relations(item):
    texts = item.sentence.tree.texts
    return [(texts[i], predicate, texts[j]) for (i, j), predicate in item.aligned.relations.items()]


def test_captions_by_which_parsers_are_judged_are_left_out(data, tmp_path):
    gold = tmp_path / "gold_dev.json"
    gold.write_text(json.dumps({"1": {"caption": "Horse on a  beach"}}))
    assert len(read_gold(data)) == len(ROWS)
    left = read_gold(data, captions_to_exclude(gold))
    assert values_of(left, "text") == [text for text, _ in ROWS if text != "horse on a beach ."]


def test_gold_relations_are_found_in_the_caption(annotated):
    assert relations(annotated[0]) == [("man", "ride", "horse")]
    assert relations(annotated[3]) == [("windows", "side by side with", "windows")]
    # "person" is no word of it, and one caption teaches no synonym
    assert annotated[2].aligned.missing == 1


def test_the_shipped_forward_pass_is_that_of_the_training(annotated):
    lists = make_tables(annotated, 1, 1)
    tables = number_tables(lists)
    torch.manual_seed(0)
    network = ParserNetwork(tables, Sizes(), dropout=0.2).eval()
    examples = [make_example(item, tables, range(len(item.sentence.tree))) for item in annotated]
    batch = collate(examples)
    with torch.no_grad():
        scores = network(batch)
        assert all(map(torch.isfinite, loss(scores, batch).values()))
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    shipped = Network(weights, tables, mention_logit=-100.0, relation_logit=-100.0)(
        values_of(annotated, "sentence")
    )
    np.testing.assert_allclose(
        np.concatenate(values_of(shipped, "named")), scores.named[1:], atol=2e-2
    )
    row = token = 0
    for example, output in zip(examples, shipped, strict=True):
        rows_of_pairs = {tuple(pair): number for number, pair in enumerate(output.pairs.tolist())}
        for first, second in example.pairs[:, :2].tolist():
            number = rows_of_pairs[first, second]
            length = len(example.tokens)
            np.testing.assert_allclose(output.verb[number], scores.verb[row], atol=2e-2)
            np.testing.assert_allclose(output.rest[number], scores.rest[row], atol=2e-2)
            np.testing.assert_allclose(output.copy[number], scores.copy[row, :length], atol=2e-2)
            row += 1
        token += len(example.tokens)
    assert row == len(scores.related)


def test_a_training_writes_weights_and_a_card(data, tmp_path):
    gold = tmp_path / "gold"
    gold.mkdir()
    (gold / "gold_dev.json").write_text(
        json.dumps({"1": {"caption": "a dog", "set": "random", "triplets": []}})
    )
    for name in ("score.py", "verb_vocab.json", "words.json"):
        (gold / name).write_text((train.GOLD / name).read_text())
    config = train.ParserTraining(joined=3, epochs=2, least_word=1, least_part=1)
    train.train_parser(data, tmp_path / "model", config, gold, Console(file=io.StringIO()))
    assert set(values_of((tmp_path / "model").iterdir(), "name")) == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert "random" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(UserError, match="is not a folder with gold_dev"):
        train.train_parser(data, tmp_path / "model", config, tmp_path, Console(file=io.StringIO()))
