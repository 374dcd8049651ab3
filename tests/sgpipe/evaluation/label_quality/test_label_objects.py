import numpy as np

from sgpipe.evaluation.label_quality.arrays import NO_MATCH, best_pairs


def test_the_best_pair_first_then_the_best_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.integers(0, 8, 25), rng.integers(0, 6, 25)
        quality = rng.integers(0, 5, 25) / 4  # with many equal ones
        expected, taken = np.full(8, NO_MATCH), set()
        for _, left, right in sorted(zip(-quality, first, second, strict=True)):
            if expected[left] == NO_MATCH and right not in taken:
                expected[left] = right
                taken.add(right)
        order = rng.permutation(25)
        assert (best_pairs(first[order], second[order], quality[order], 8) == expected).all()
