import os
import sys

import pytest

from sgpipe.utils import ray_cluster
from sgpipe.utils.ray_cluster import worker_failure


def test_the_innermost_error_is_told():
    for text, expected in (
        ("ray.exceptions.UserCodeException: UDF failed\n  File\nstruct.error: 4 bytes\n\nAnd", "struct.error: 4 bytes"),
        ("something\nelse", "something"),
        ("ValueError: bad", "ValueError: bad"),
    ):
        assert worker_failure(RuntimeError(text)) == f"a worker failed: {expected}"


@pytest.mark.parametrize(
    ("address", "has_token", "is_open", "mode", "own_token"),
    [
        (None, False, None, "token", True),
        (None, True, None, "token", False),
        ("head:6379", False, True, "disabled", False),
        ("head:6379", True, True, "disabled", False),
        ("head:6379", True, False, "token", False),
    ],
)
def test_a_token_is_presented_only_where_one_is_needed(
    address, has_token, is_open, mode, own_token, tmp_path, monkeypatch
):
    """A local Ray has its own in memory; one of this machine must not keep it out of an open cluster."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(ray_cluster, "_check_port", lambda address: None)
    monkeypatch.setattr(ray_cluster, "_answers", lambda address, mode: (mode == "disabled") == is_open)
    if has_token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    ray_cluster.prepare_ray(address)
    assert os.environ.get("RAY_AUTH_MODE") == mode
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == 64 * own_token
