import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlip_model.evaluation.triplets import IMAGES_AT_ONCE, TripletClasses, best_triplets, blocks, largest
from tests.rlip_model.evaluation.scenes import FAR, PERSON, THING, image


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 12))
def test_the_largest_are_the_start_of_a_stable_sort(values: list[int], most: int) -> None:
    scores = np.array(values, dtype=np.float32)
    assert largest(scores, most).tolist() == np.argsort(-scores, kind="stable")[:most].tolist()


def test_class_numbers_can_be_read_back() -> None:
    classes = TripletClasses(num_objects=7, num_predicates=5)
    labels = np.array([[0, 0, 0], [6, 6, 4], [3, 1, 2]])
    np.testing.assert_array_equal(classes.labels(classes.number(*labels.T)), labels)


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
