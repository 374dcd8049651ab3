"""How benchmarks measure: by turns, in CPU time, beside what the machine can do at all."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048


def machine() -> str:
    """The processor, and what computes on it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    wide = ", AVX-512" if any("avx512f" in line for line in lines) else ""
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}{wide}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def medians(ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """CPU seconds of all threads, by turns; a first turn that warms up does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if number >= 0:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def matrix_rate(rounds: int = 3) -> float:
    """Floating point operations per CPU second in products of large square matrices: no network is faster."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / medians({"product": lambda: left @ right}, rounds)["product"]


def operations(way: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in it."""
    with FlopCounterMode(display=False) as counter:
        way()
    return int(counter.get_total_flops())
