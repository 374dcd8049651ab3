"""Numbers for the classes of objects, where a form tells them by number."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sgpipe.vocabulary import category_names

_OFFICIAL = ("coco", "objects365", "open_images")


def number_categories(seen: Collection[tuple[int, str]], names: Sequence[str] | None) -> dict[str, int]:
    """A number for each class, also for those that no object has.

    The ids that the run has are kept where ids and names are the same thing, and no class remains without; or else
    the ids of the data set whose classes they are; or else classes count from 1.

    Args:
        seen: the id and the name of every object.
        names: all classes in their order, where the run knows them; ids of those without objects are not known.
    """
    known = {name: number for number, name in sorted(seen)}
    wanted = list(dict.fromkeys([*(names or ()), *known]))
    if len({number for number, _ in seen}) == len(known) == len(seen):
        for ids in (known, *map(_official, _OFFICIAL)):
            if known.items() <= ids.items() and set(wanted) <= ids.keys():
                return {name: number for name, number in ids.items() if name in wanted}
    return {name: number for number, name in enumerate(wanted if names else sorted(wanted), 1)}


def _official(dataset: str) -> dict[str, int]:
    return {name: number for number, name in category_names(dataset).items()}
