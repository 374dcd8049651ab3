"""The models of the miniworld: data, training and quality of captioner and judge; all of them in
small.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast

from experiments.miniworld import make_models
from experiments.miniworld.caption_quality import CaptionJudge, correct_rate, measure, truth_of
from experiments.miniworld.captioner import (
    CaptionerConfig,
    CaptionerModelConfig,
    canonical_caption,
    caption_words,
    save_tokenizer,
)
from experiments.miniworld.captioner_data import render_captioner_data, taught_facts
from experiments.miniworld.judge import JudgeConfig, save_judge
from experiments.miniworld.judge import save_tokenizer as save_judge_tokenizer
from experiments.miniworld.judge_data import claim_texts, render_judge_data
from experiments.miniworld.network_quality import network_recipe
from experiments.miniworld.train_captioner import CaptionerTrainer
from experiments.miniworld.train_judge import JudgeTrainer
from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.relations import PREDICATES
from sgpipe.miniworld.scene import random_scene, scene_captions, scene_generator
from sgpipe.recipe import packaged_model
from sgpipe.records import Box, Relation
from sgpipe.stages.score.clip import ClipScorer
from sgpipe.stages.score.scorer import contrast_texts, relation_text
from sgpipe.training.initial_model import CLASSES
from tests.sgpipe.generation.in_process import without_ray
from tests.values import values_of

pytestmark = pytest.mark.slow

SMALL = CaptionerModelConfig(
    image_size=32,
    patch_size=8,
    vision_width=32,
    vision_layers=1,
    text_width=32,
    text_layers=1,
    heads=2,
)
CONFIG = CaptionerConfig(
    model=SMALL, train_images=6, steps=4, batch_size=4, dense_share=0.5, warmup=1
)

JUDGE = JudgeConfig(images=4, steps=2, batch_size=4, text_layers=1, text_width=32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    return save_tokenizer(tmp_path_factory.mktemp("captioner"), caption_words())


def test_taught_facts_are_true_and_include_all_composed_ones() -> None:
    for number in range(60):
        scene = random_scene(5, "train", number)
        taught = set(values_of(taught_facts(scene), "subject", "predicate", "object"))
        composed = {
            (fact.subject, fact.predicate, fact.object) for fact in scene.facts if not fact.implied
        }
        assert composed <= taught <= set(values_of(scene.facts, "subject", "predicate", "object"))
        assert all(
            (other, "in front of", one) in taught
            for one, predicate, other in taught
            if predicate == "behind"
        )


def test_training_follows_from_the_seed_and_starts_with_the_dense_loss(
    tokenizer: BertTokenizerFast,
) -> None:
    data = render_captioner_data(SMALL, tokenizer, CONFIG.train_images, CONFIG.seed)
    first, second = (CaptionerTrainer(CONFIG, tokenizer, data) for _ in range(2))
    losses = [first.step() for _ in range(4)]
    assert losses == [second.step() for _ in range(4)]
    assert [loss.caption > 0 for loss in losses] == [False, False, True, True]
    for (name, one), two in zip(
        first.model.named_parameters(), second.model.parameters(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_the_packaged_captioner_is_correct_on_new_images() -> None:
    quality = measure(str(packaged_model("captioner")), 60, counted=1000)
    greedy, samples, shuffled, *_ = quality.rows
    assert greedy.correct.value > 0.8
    assert samples.correct.value > 0.75
    assert samples.composed.value > 0.75
    assert shuffled.correct.value < 0.3


def test_every_caption_of_the_miniworld_is_true_of_its_scene() -> None:
    judge = CaptionJudge()
    assert judge.statements(["a horse ridden by a girl", "a horse"]) == [
        (("person", "riding", "horse"),),
        (),
    ]
    for number in range(40):
        scene = random_scene(9, "val", number)
        for fact in scene.facts:
            assert judge.statements([canonical_caption(scene, fact)]) == [(scene.statement(fact),)]
        varied = values_of(scene_captions(scene, scene_generator(9, "val", number, 1)), "text")
        share = correct_rate([judge.statements(varied)], [truth_of(scene)])
        assert share.hits >= share.total - 1  # compound sentences are at times misparsed


@pytest.mark.slow
def test_all_models_are_trained_evaluated_and_described(tmp_path, monkeypatch, capsys):
    brief = CaptionerConfig(train_images=24, steps=4)
    monkeypatch.setattr(make_models, "captioner_recipe", lambda: brief)
    with without_ray():
        make_models.main(tmp_path / "out", images=8, train_images=16)
    printed = capsys.readouterr().out
    for words in ("10 nucleus samples", "all matching pairs", "HOI mAP"):
        assert words in printed
    weights = tmp_path / "out" / "weights"
    for name in ("captioner", "tagger", "parseda"):
        assert "CPU-seconds" in (weights / name / "README.md").read_text()
    for name in make_models.NETWORKS:
        assert (
            CLASSES[network_recipe(name).model.kind]
            .from_pretrained(weights / name)
            .num_parameters()
            > 500_000
        )
    assert "\n16 images of the train split" in (weights / "tagger" / "README.md").read_text()
    assert "4 steps with 16 images" in (weights / "captioner" / "README.md").read_text()


def test_a_saved_judge_says_what_the_training_sees(tmp_path: Path) -> None:
    data = render_judge_data(JUDGE)
    tokenizer = save_judge_tokenizer(tmp_path)
    trainer = JudgeTrainer(JUDGE, tokenizer, data)
    losses = [trainer.step() for _ in range(2)]
    assert all(np.isfinite(losses))
    rows = claim_texts().possible[data.classes[:, 0], data.classes[:, 1]].any(1).nonzero()[:3, 0]
    with torch.no_grad():
        odds, _ = trainer.odds(rows, torch.zeros(len(rows), dtype=torch.bool))
    save_judge(trainer.model, JUDGE, tokenizer, tmp_path)
    judge = ClipScorer(str(tmp_path), "cpu")
    judge.load()
    probabilities = []
    for row in rows.tolist():
        crop = Image.fromarray(data.pixels[row].permute(1, 2, 0).numpy())
        seen = judge.clip.embed_images([crop])[0]
        objects = [Box(KINDS[kind], 0, (0, 0, 1, 1)) for kind in data.classes[row].tolist()]
        possible = (
            claim_texts().possible[tuple(data.classes[row].tolist())].nonzero()[:, 0].tolist()
        )
        for number in possible:
            stated = relation_text(objects[0], PREDICATES[number], objects[1])
            texts = [stated, *contrast_texts(objects, Relation(0, 1, PREDICATES[number]))]
            probabilities.append(judge._probability(seen, texts))
    assert probabilities == pytest.approx(odds.sigmoid().tolist(), abs=0.02)
