import pytest

from sgpipe.utils import ray_cluster
from sgpipe.utils.ray_cluster import RayToken, ray_token, worker_failure


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


def test_a_token_is_looked_for_where_ray_does(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_token() == RayToken("", "~/.ray/auth_token")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(" of the machine\n")
    assert ray_token() == RayToken("of the machine", "~/.ray/auth_token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    assert ray_token() == RayToken("", f"{tmp_path}/nowhere (RAY_AUTH_TOKEN_PATH)")
    (tmp_path / "nowhere").write_bytes(b"\xff")
    assert ray_token().value == ""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert ray_token() == RayToken("of the variable", "RAY_AUTH_TOKEN")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "  " if name == "RAY_AUTH_TOKEN" else "")
    assert ray_token().value == "of the machine"


def test_the_lines_of_a_version_mismatch_become_one():
    text = (
        "Version mismatch: The cluster was started with:\n  Ray: 2.50.0\nThis process was started with:\n  Ray: 2.60.0"
    )
    expected = "Version mismatch: The cluster was started with: Ray: 2.50.0 This process was started with: Ray: 2.60.0"
    assert ray_cluster._first_line(RuntimeError(text)) == expected
