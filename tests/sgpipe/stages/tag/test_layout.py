"""The layout model: what its scores must not depend on, bad boxes, files that are not its own, and
its training.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sgpipe.errors import UserError
from sgpipe.stages.tag.layout import ImageLayout, LayoutModel
from sgpipe.stages.tag.layout import model as layout_model
from sgpipe.stages.tag.layout.fit import LayoutExample, LayoutSettings, fit_layout
from sgpipe.stages.tag.layout.model import CONFIG, MODEL, VERSION, WEIGHTS
from tests.values import values_of

FAST = LayoutSettings(networks=2, epochs=15, min_steps=0, batch=16, width=8, average=0.9)


def layout(
    boxes: list[list[float]], classes: list[str], width: float = 640, height: float = 480
) -> ImageLayout:
    return ImageLayout(np.array(boxes, np.float32).reshape(-1, 4), classes, width, height)


def every_pair(image: ImageLayout) -> np.ndarray:
    count = len(image.classes)
    return np.array(
        [(s, o) for s in range(count) for o in range(count) if s != o], np.int64
    ).reshape(-1, 2)


RIDER = layout(
    [[100, 50, 200, 300], [80, 200, 260, 420], [400, 60, 460, 250], [500, 300, 620, 470]],
    ["person", "bicycle", "person", "dog"],
)


@pytest.fixture(scope="module")
def shipped() -> LayoutModel:
    return LayoutModel.load()


def random_layout(seed: int, boxes: int, classes: tuple[str, ...]) -> ImageLayout:
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 480, (boxes, 2, 2)), axis=1)
    return ImageLayout(
        corners.reshape(-1, 4).astype(np.float32), list(random.choice(classes, boxes)), 480, 480
    )


class TestScore:
    def test_the_rider_rides_and_the_bystander_does_not(self, shipped: LayoutModel) -> None:
        scores = shipped.score(RIDER, np.array([[0, 1], [2, 1], [2, 3]]))
        ride = shipped.actions.index("ride")
        assert scores.interacts[0] > 0.8 > 0.2 > scores.interacts[1:].max()
        assert scores.actions[0, ride] > 0.8
        assert scores.interacts.dtype == scores.actions.dtype == np.float32

    def test_a_mirrored_image_has_the_same_scores(self, shipped: LayoutModel) -> None:
        left, top, right, bottom = RIDER.boxes.T
        mirrored = replace(RIDER, boxes=np.stack([640 - right, top, 640 - left, bottom], axis=1))
        for image in (RIDER, mirrored):
            image_scores = shipped.score(image, every_pair(image))
            np.testing.assert_allclose(
                image_scores.interacts, shipped.score(RIDER, every_pair(RIDER)).interacts, 1e-4
            )

    def test_scores_depend_neither_on_other_images_nor_on_which_pairs_are_scored(
        self, shipped: LayoutModel
    ) -> None:
        images = [random_layout(seed, 3 + seed, ("person", "cup", "dog")) for seed in range(9)]
        together = shipped.score_many(images, list(map(every_pair, images)))
        for image, scores in zip(images, together, strict=True):
            for row, pair in enumerate(every_pair(image)):
                alone = shipped.score(image, pair[None])
                assert alone.interacts[0] == scores.interacts[row]
                assert (alone.actions[0] == scores.actions[row]).all()

    def test_large_images_are_scored_in_blocks(
        self, shipped: LayoutModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = random_layout(0, 60, ("person", "cup", "dog"))
        at_once = shipped.score(image, every_pair(image))
        monkeypatch.setattr(layout_model, "_ROWS", 300)
        blocks = shipped.score(image, every_pair(image))
        np.testing.assert_allclose(blocks.interacts, at_once.interacts, rtol=1e-4, atol=1e-6)

    def test_only_subject_classes_are_subjects(self, shipped: LayoutModel) -> None:
        scores = shipped.score(RIDER, np.array([[1, 0], [3, 1], [0, 0]]))
        assert (scores.interacts == 0).all()
        assert (scores.actions == 0).all()

    def test_a_class_counts_as_its_synonym_and_else_as_any_class(
        self, shipped: LayoutModel
    ) -> None:
        pairs = np.array([[0, 1]])
        synonym = replace(RIDER, classes=["Woman", "bike", "man", "puppy"])
        unknown = replace(RIDER, classes=["person", "gizmo", "person", "gadget"])
        assert shipped.score(synonym, pairs).interacts == shipped.score(RIDER, pairs).interacts
        assert 0 < shipped.score(unknown, pairs).interacts[0] < 1

    @pytest.mark.parametrize(
        "image",
        [
            layout([], []),
            layout([[0, 0, 9, 9]], ["person"]),
            layout([[0, 0, 9, 9], [5, 5, 9, 9]], ["cup", "dog"]),
            layout([[0, 0, 9, 9]] * 3, ["person"] * 3),
            layout(
                [[5, 5, 5, 5], [7, 7, 7, 3], [-50, -50, -10, -10], [900, 900, 990, 990]],
                ["person", "cup"] * 2,
            ),
            layout(
                [[0, 0, np.nan, 9], [0, 0, np.inf, 9], [-np.inf, 0, 1, 9]],
                ["person", "cup", "person"],
            ),
            layout([[0, 0, 1e30, 1e30], [0, 0, 1e-30, 1e-30]], ["person", "cup"]),
            layout([[0, 0, 9, 9], [0, 0, 9, 9]], ["person", "cup"], 0, 0),
        ],
    )
    def test_any_boxes_have_finite_scores(self, shipped: LayoutModel, image: ImageLayout) -> None:
        pairs = every_pair(image)
        scores = shipped.score(image, pairs)
        assert scores.interacts.shape == (len(pairs),)
        assert scores.actions.shape == (len(pairs), len(shipped.actions))
        assert np.isfinite(scores.interacts).all()
        assert np.isfinite(scores.actions).all()


class TestLoad:
    def test_a_saved_model_is_loaded_with_the_same_scores(
        self, shipped: LayoutModel, tmp_path: Path
    ) -> None:
        shipped.save(tmp_path / "model")
        loaded = LayoutModel.load(tmp_path / "model")
        assert (loaded.actions, loaded.subject_classes) == (shipped.actions, ("person",))
        pairs = every_pair(RIDER)
        assert (loaded.score(RIDER, pairs).actions == shipped.score(RIDER, pairs).actions).all()
        assert (tmp_path / "model" / MODEL).read_bytes() == (WEIGHTS / MODEL).read_bytes()

    def test_what_is_not_a_model_of_this_version_is_refused(
        self, shipped: LayoutModel, tmp_path: Path
    ) -> None:
        shipped.save(tmp_path)
        config = json.loads((tmp_path / CONFIG).read_text())
        weights = (tmp_path / MODEL).read_bytes()
        for damaged, message in {
            json.dumps(
                config | {"version": VERSION + 1}
            ): f"version {VERSION + 1}, this sgpipe reads",
            json.dumps(config)[:-9]: "cannot be read",
            json.dumps(config | {"actions": ["hold"]}): "not of the same model",
            json.dumps({"version": VERSION}): "cannot be read",
            "[]": "cannot be read",
        }.items():
            (tmp_path / CONFIG).write_text(damaged)
            with pytest.raises(UserError, match=message) as error:
                LayoutModel.load(tmp_path)
            assert str(tmp_path) in str(error.value)
            assert "\n" not in str(error.value)
        (tmp_path / CONFIG).write_text(json.dumps(config))
        save_file({"0.mean": np.zeros(3, np.float16)}, tmp_path / MODEL)
        with pytest.raises(UserError, match="cannot be read"):
            LayoutModel.load(tmp_path)
        (tmp_path / MODEL).write_bytes(weights[:-100])
        with pytest.raises(UserError, match="cannot be read"):
            LayoutModel.load(tmp_path)
        with pytest.raises(UserError, match="cannot be read"):
            LayoutModel.load(tmp_path / "missing")

    def test_it_is_small(self) -> None:
        assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 2e6


def holding_examples(count: int) -> list[LayoutExample]:
    """Robots that hold the one of two tools that is on them; the other one lies apart."""
    examples = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        x, y = random.uniform(0, 300, 2)
        robot = [x, y, x + 60, y + 120]
        held = [x + 20, y + 50, x + 50, y + 80]
        apart = [x + 200, y + 150, x + 230, y + 180]
        classes = ["robot", *random.permutation(["wrench", "hammer"])]
        examples.append(
            LayoutExample(layout([robot, held, apart], classes), [(0, ["grip", "lift"], 1)])
        )
    return examples


class TestFit:
    def test_it_learns_any_vocabulary_bit_for_bit(self) -> None:
        examples = holding_examples(48)
        model = fit_layout(examples, FAST)
        refitted = fit_layout(iter(examples), FAST)
        assert model.actions == ("grip", "lift")
        assert model.subject_classes == ("robot",)
        test = holding_examples(60)[-1].layout
        pairs = np.array([[0, 1], [0, 2]])
        scores = model.score(test, pairs)
        assert scores.interacts[0] > 0.5 > scores.interacts[1]
        assert (scores.actions == refitted.score(test, pairs).actions).all()
        other = fit_layout(examples, replace(FAST, seed=1)).score(test, pairs)
        assert (scores.interacts != other.interacts).any()

    def test_training_and_the_model_compute_the_same(self) -> None:
        """The network in PyTorch, which is trained, and the one in numpy."""
        import torch

        from sgpipe.stages.tag.layout.fit import Batch, LayoutNetwork, Table, Vocabulary, to_model

        examples = holding_examples(5)
        vocabulary = Vocabulary.of(examples)
        table = Table(examples, vocabulary)
        network = LayoutNetwork(table.features.shape[1], len(vocabulary.classes), 3, FAST).eval()
        scale = np.full(table.features.shape[1], 0.1, np.float32)
        rows = np.arange(len(table.subjects))
        with torch.no_grad():
            features = torch.from_numpy(table.features * scale).clamp(-6, 6)
            expected = torch.sigmoid(network(features, Batch(table, rows)))
        model = to_model([network.state_dict()], 0 * scale, scale, vocabulary)
        images = values_of(examples, "layout")
        scores = model.score_many(images, [np.array([[0, 1], [0, 2]])] * len(images))
        np.testing.assert_allclose(
            np.concatenate(values_of(scores, "interacts")), expected[:, 0], rtol=1e-4
        )
        np.testing.assert_allclose(
            np.concatenate(values_of(scores, "actions")), expected[:, 1:], rtol=1e-4
        )

    def test_examples_without_relations_or_negatives_are_refused(self) -> None:
        examples = holding_examples(3)
        with pytest.raises(UserError, match="no image has a relation"):
            fit_layout([replace(example, relations=[]) for example in examples], FAST)
        everything = [(0, ["grip"], 1), (0, ["grip"], 2)]
        with pytest.raises(UserError, match="every candidate pair interacts"):
            fit_layout([replace(example, relations=everything) for example in examples], FAST)
