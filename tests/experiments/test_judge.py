"""The miniworld's judge: its texts, its training data, its training, and how its quality is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.miniworld.judge import JudgeConfig, save_judge, save_tokenizer
from experiments.miniworld.judge_data import claim_texts, render_judge_data
from experiments.miniworld.train_judge import JudgeTrainer
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.relations import PREDICATES
from sgpipe.records import Box, Relation
from sgpipe.stages.score.clip import ClipScorer
from sgpipe.stages.score.scorer import contrast_texts, relation_text

CONFIG = JudgeConfig(images=4, steps=2, batch_size=4, text_layers=1, text_width=32)


def test_a_saved_judge_says_what_the_training_sees(tmp_path: Path) -> None:
    data = render_judge_data(CONFIG)
    tokenizer = save_tokenizer(tmp_path)
    trainer = JudgeTrainer(CONFIG, tokenizer, data)
    losses = [trainer.step() for _ in range(2)]
    assert all(np.isfinite(losses))
    rows = claim_texts().possible[data.classes[:, 0], data.classes[:, 1]].any(1).nonzero()[:3, 0]
    with torch.no_grad():
        odds, _ = trainer.odds(rows, torch.zeros(len(rows), dtype=torch.bool))
    save_judge(trainer.model, CONFIG, tokenizer, tmp_path)
    judge = ClipScorer(str(tmp_path), "cpu")
    judge.load()
    found = []
    for row in rows.tolist():
        crop = Image.fromarray(data.pixels[row].permute(1, 2, 0).numpy())
        seen = judge.clip.embed_images([crop])[0]
        objects = [Box(KINDS[kind], 0, (0, 0, 1, 1)) for kind in data.classes[row].tolist()]
        possible = claim_texts().possible[tuple(data.classes[row].tolist())].nonzero()[:, 0].tolist()
        for number in possible:
            own = relation_text(objects[0], PREDICATES[number], objects[1])
            texts = [own, *contrast_texts(objects, Relation(0, 1, PREDICATES[number]))]
            found.append(judge._probability(seen, texts))
    assert found == pytest.approx(odds.sigmoid().tolist(), abs=0.02)
