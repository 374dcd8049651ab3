import numpy as np

from rlip_model.evaluation.triplets import IMAGES_AT_ONCE, best_triplets, blocks
from tests.rlip_model.evaluation.scenes import FAR, PERSON, THING, image


def test_a_stream_is_read_a_block_at_a_time() -> None:
    read: list[int] = []
    stream = blocks(read.append(number) or number for number in range(IMAGES_AT_ONCE + 3))
    assert next(stream) == list(range(IMAGES_AT_ONCE)) == read
    assert len(next(stream)) == 3
    assert next(stream, None) is None


def test_what_cannot_be_is_scored_0_but_not_left_out() -> None:
    possible = np.ones((3, 2), dtype=bool)
    possible[2, 1] = False
    scene = image(found=[(PERSON, THING, 1, {0: 0.25, 2: 0.5}), (PERSON, FAR, 0, {2: 0.125})], num_predicates=3)
    found = best_triplets([image(num_predicates=3), scene], 4, possible)
    assert found.image.tolist() == [1] * 4
    assert found.scores.tolist() == [0.25, 0.125, 0, 0]
    assert found.predicates.tolist() == [0, 2, 1, 2]
    assert found.objects.tolist() == [1, 0, 1, 1]
    assert found.object_boxes[1].tolist() == FAR
