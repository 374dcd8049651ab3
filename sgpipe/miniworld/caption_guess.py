"""What can be said of a scene by someone who knows which things are in it, but has not seen the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product

from sgpipe.miniworld.caption_judge import Truth
from sgpipe.miniworld.relations import Statement
from sgpipe.miniworld.scene import Scene


class ObjectsOnlyGuess:
    """Says what is most often true of scenes with such things: the best that knowing the objects alone allows
    to someone who looks at two classes at a time."""

    def __init__(self, scenes: Iterable[tuple[Scene, Truth]]) -> None:
        """Counts in `scenes` how often two classes are there, and how often a statement about them is true."""
        present, true = Counter[tuple[str, str]](), Counter[Statement]()
        for scene, truth in scenes:
            present.update(_pairs(scene))
            true.update(truth.everything)
        self._chances: dict[tuple[str, str], list[tuple[float, Statement]]] = {}
        for statement, count in true.items():
            pair = statement[0], statement[2]
            self._chances.setdefault(pair, []).append((count / present[pair], statement))

    def __call__(self, scene: Scene, count: int) -> list[Statement]:
        """The `count` statements that are most likely true of the scene, best first."""
        chances = [chance for pair in _pairs(scene) for chance in self._chances.get(pair, ())]
        return [statement for _, statement in sorted(chances, key=lambda chance: (-chance[0], chance[1]))[:count]]


def _pairs(scene: Scene) -> set[tuple[str, str]]:
    """Ordered pairs of classes; a class with itself if there are two of it."""
    kinds = Counter(thing.kind for thing in scene.things)
    return {pair for pair in product(kinds, kinds) if pair[0] != pair[1] or kinds[pair[0]] > 1}
