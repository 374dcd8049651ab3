import pytest

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
