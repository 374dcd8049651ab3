"""Scored triplets in pixels."""

import pytest
import torch

from rlip_model.postprocess import hoi_detections, scene_graph_detections, zero_shot_hoi_detections
from tests.rlip_model.samples import OBJECTS, PAIRS, RELATIONS, random_layer

SIZES = torch.tensor([[100, 200], [50, 40]])


def test_no_objects_is_never_a_label() -> None:
    output = random_layer()
    assert output.subject_logits is not None
    with torch.no_grad():
        output.object_logits[..., -1] = 50
        output.subject_logits[..., -1] = 50
    for detections in scene_graph_detections(output, SIZES):
        assert int(torch.cat((detections.subject_labels, detections.object_labels)).max()) < OBJECTS - 1
        assert float(detections.relation_scores.max()) < 1e-6


def test_zero_shot_keeps_only_persons() -> None:
    output = random_layer(seed=2)
    assert output.subject_logits is not None
    looks = output.subject_logits[..., :-1].argmax(-1)
    kept = 0
    for image, (found, every) in enumerate(
        zip(zero_shot_hoi_detections(output, SIZES), hoi_detections(output, SIZES), strict=True)
    ):
        persons = looks[image] == 0
        assert len(found) == int(persons.sum())
        kept += len(found)
        torch.testing.assert_close(found.relation_scores, every.relation_scores[persons])
        torch.testing.assert_close(found.object_boxes, every.object_boxes[persons])
        assert found.relation_scores.shape[1] == RELATIONS
    assert 0 < kept < 2 * PAIRS


def test_subjects_that_are_not_classified() -> None:
    output = random_layer(subjects=False)
    assert len(hoi_detections(output, SIZES)[0]) == PAIRS
    with pytest.raises(ValueError, match="does not classify subjects"):
        zero_shot_hoi_detections(output, SIZES)
    with pytest.raises(ValueError, match="does not classify subjects"):
        scene_graph_detections(output, SIZES)
