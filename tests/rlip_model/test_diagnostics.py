"""Figures to log."""

from rlip_model.losses import prediction_errors
from rlip_model.matcher import match
from rlip_model.settings import MatchingCosts
from rlip_model.targets import join
from tests.rlip_model.samples import RELATIONS, perfect_layer, random_triplets


def test_perfect_predictions_have_no_errors() -> None:
    triplets = random_triplets(3)
    layer, batch = perfect_layer(triplets), join([triplets], RELATIONS)
    errors = prediction_errors(layer, batch, match([layer], batch, MatchingCosts())[0])
    assert errors.subject_class is not None
    assert (float(errors.subject_class), float(errors.object_class), float(errors.cardinality)) == (0, 0, 0)


def test_wrong_classes_are_counted_in_percent() -> None:
    triplets = random_triplets(4)
    layer, batch = perfect_layer(triplets), join([triplets], RELATIONS)
    assignment = match([layer], batch, MatchingCosts())[0]
    layer.object_logits[0, 0] = layer.object_logits[0, 0].roll(1)
    errors = prediction_errors(layer, batch, assignment)
    assert float(errors.object_class) == 25
