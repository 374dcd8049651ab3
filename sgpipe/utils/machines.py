"""The machines of a Ray cluster, and which actors fit on which: an actor never spans two machines or parts of two GPUs.

Ray itself waits, without a word, for a machine that has room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgpipe.utils.console import count

_ROUNDING = 1e-6
_GIB = 1 << 30
_MOST_STEPS = 20_000  # of the search for an arrangement; each is a few microseconds per machine


@dataclass(frozen=True)
class Need:
    """What an actor takes of its machine. GPUs: a part of one, or whole ones. Memory: GiB."""

    cpus: float = 0
    gpus: float = 0
    memory: float = 0

    def __str__(self) -> str:
        return amounts(self.cpus, self.gpus, self.memory)

    @property
    def _size(self) -> tuple[float, float, float]:
        """The scarcest first."""
        return self.gpus, self.cpus, self.memory


@dataclass(frozen=True)
class Machine:
    """What is free on a machine. `gpus`: of each of its GPUs."""

    node: str
    cpus: float = 0
    gpus: tuple[float, ...] = ()
    memory: float = 0

    @property
    def free_gpus(self) -> float:
        return sum(self.gpus)

    def without(self, need: Need) -> Machine | None:
        """What is free after an actor is placed on it; None: it does not fit."""
        gpus = _without_gpus(self.gpus, need.gpus)
        cpus, memory = self.cpus - need.cpus, self.memory - need.memory
        if gpus is None or cpus < -_ROUNDING or (need.memory and memory < -_ROUNDING):
            return None
        return replace(self, cpus=cpus, gpus=gpus, memory=memory)


def machines_of(nodes: Sequence[Mapping[str, Any]]) -> list[Machine]:
    """The machines that `ray.nodes()` lists, without those that are lost."""
    return [
        Machine(
            str(node["NodeID"]),
            node["Resources"].get("CPU", 0.0),
            (1.0,) * int(node["Resources"].get("GPU", 0) + _ROUNDING),
            node["Resources"].get("memory", 0.0) / _GIB,
        )
        for node in nodes
        if node["Alive"]
    ]


def place(needs: Sequence[Need], machines: Sequence[Machine]) -> list[str] | None:
    """The node of a machine for each actor, so that all run at once; None if they do not fit.

    The largest come first, each on the machine that it fills best. If that fails, arrangements are searched.
    """
    order = sorted(range(len(needs)), key=lambda number: needs[number]._size, reverse=True)
    chosen = _search([needs[number] for number in order], list(machines))
    return chosen and [node for _, node in sorted(zip(order, chosen, strict=True))]


def _search(needs: Sequence[Need], machines: list[Machine]) -> list[str] | None:
    """Depth first, without recursion: clusters may have thousands of actors."""
    chosen: list[list[tuple[int, Machine]]] = []  # the possible places of each actor so far, the one in use last
    before: list[Machine] = []
    steps = 0
    while len(chosen) < len(needs):
        places = _places(needs[len(chosen)], machines)
        steps += 1
        while not places:  # back to the last actor that has another place
            if not chosen or steps > _MOST_STEPS:
                return None
            places = chosen.pop()
            place_in_use, _ = places.pop()
            machines[place_in_use] = before.pop()
        chosen.append(places)
        number, after = places[-1]
        before.append(machines[number])
        machines[number] = after
    return [machines[places[-1][0]].node for places in chosen]


def _places(need: Need, machines: Sequence[Machine]) -> list[tuple[int, Machine]]:
    """The machines that an actor fits on, each as it is afterwards, the best last; of equal machines only one."""
    different = {(each.cpus, each.gpus, each.memory): number for number, each in reversed(list(enumerate(machines)))}
    fitting = [(number, machines[number].without(need)) for number in different.values()]
    places = [(number, after) for number, after in fitting if after is not None]
    return sorted(places, key=lambda place: (-place[1].free_gpus, -place[1].cpus, -place[0]))


def best_place(need: Need, machines: Sequence[Machine]) -> int | None:
    """The number of the machine that an actor fills best; None: it fits on none."""
    places = _places(need, machines)
    return places[-1][0] if places else None


def _without_gpus(gpus: tuple[float, ...], need: float) -> tuple[float, ...] | None:
    """A part of the fullest GPU that has it, or whole ones."""
    if need <= _ROUNDING:
        return gpus
    free = sorted(gpus)
    if need < 1:
        fitting = [number for number, each in enumerate(free) if each >= need - _ROUNDING]
        if not fitting:
            return None
        free[fitting[0]] -= need
        return tuple(sorted(free))
    whole = sum(each > 1 - _ROUNDING for each in free)
    if need > whole + _ROUNDING or abs(need - round(need)) > _ROUNDING:
        return None
    return tuple(free[: len(free) - round(need)] + [0.0] * round(need))


def amounts(cpus: float, gpus: float, memory: float = 0) -> str:
    """Such as "4 CPUs and 1 GPU"."""
    parts = [_amount(cpus, "CPU")] if cpus or not gpus else []
    parts += [_amount(gpus, "GPU")] if gpus else []
    parts += [f"{memory:.3g} GiB of memory"] if memory else []
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _amount(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def describe(machines: Sequence[Machine], *, memory: bool = False) -> str:
    """Their number and sizes, the largest first: "2 machines with 4 CPUs each, 1 machine with 1 GPU"."""
    sizes = Counter((len(each.gpus), each.cpus, each.memory if memory else 0) for each in machines)
    parts = [
        f"{count(number, 'machine')} with {amounts(cpus, gpus, gib)}{' each' if number > 1 else ''}"
        for (gpus, cpus, gib), number in sorted(sizes.items(), reverse=True)
    ]
    return ", ".join(parts) or "no machine"
