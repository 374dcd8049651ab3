import pytest

from sgpipe.utils import ray_cluster
from sgpipe.utils.ray_cluster import worker_failure


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "ray.exceptions.UserCodeException: UDF failed\n  File\nstruct.error: unpack requires 4 bytes\n\nAnd",
            "a worker failed: struct.error: unpack requires 4 bytes",
        ),
        ("something\nelse", "a worker failed: something"),
        ("ValueError: bad", "a worker failed: ValueError: bad"),
    ],
)
def test_the_innermost_error_is_told(text, expected):
    assert worker_failure(RuntimeError(text)) == expected


def test_the_lines_of_a_version_mismatch_become_one():
    text = (
        "Version mismatch: The cluster was started with:\n  Ray: 2.50.0\nThis process was started with:\n  Ray: 2.60.0"
    )
    expected = "Version mismatch: The cluster was started with: Ray: 2.50.0 This process was started with: Ray: 2.60.0"
    assert ray_cluster._first_line(RuntimeError(text)) == expected
