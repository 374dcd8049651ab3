"""What Ray prints by itself."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from sgpipe.errors import EngineError
from sgpipe.utils.console import QUIET
from sgpipe.utils.ray_cluster import start_ray

LINE = (
    b"[2026-01-01 00:00:00,000 I 1 1] logging.cc:303: Set ray log level from environment variable X"
    b" to 3\n"
)


@pytest.mark.parametrize("fails", [False, True])
def test_quiet_leaves_out_the_line_on_the_log_level_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    def init(*_: object, **__: object) -> None:
        os.write(2, LINE + b"a problem\n")
        if fails:
            raise RuntimeError("it is too slow")

    ray = ModuleType("ray")
    vars(ray).update(init=init, is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv(QUIET, "1")
    if fails:
        with pytest.raises(EngineError, match="it is too slow"):
            start_ray()
    else:
        start_ray()
    assert capfd.readouterr().err == "a problem\n"
