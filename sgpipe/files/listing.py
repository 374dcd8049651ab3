"""Listings of prefixes of object stores: the names, sizes and versions of the objects, in an index
that a run keeps.
"""

from __future__ import annotations

from itertools import islice

import duckdb

from sgpipe.files.index import FileIndex, IndexFolder, IndexReference, write_index
from sgpipe.files.roots import list_objects
from sgpipe.files.stores import StorePath
from sgpipe.utils.console import count

_PAGE = 1000  # objects of one answer, which tell whether a prefix has changed
_DIFFERENCES = """
    SELECT
        count(*) FILTER (before.name IS NULL),
        count(*) FILTER (now.name IS NULL),
        count(*) FILTER (
            before.name = now.name
            AND (before.size, before.version) IS DISTINCT FROM (now.size, now.version)
        )
    FROM before FULL JOIN now ON before.name = now.name
"""


def prefix_index(text: str, prefix: StorePath, indexes: IndexFolder) -> IndexReference:
    """Return the index of a prefix as the run listed it before, or as it is now if it did not, or
    lists it again. Says what has changed.
    """
    say = indexes.progress.say
    before = indexes.kept_reference(text)
    if before is None:
        return _listed(text, prefix, indexes)
    when = indexes.kept[text].listed
    if indexes.relists:
        reference = _listed(text, prefix, indexes)
        changes = differences(before.opened, reference.opened)
        if changes:
            say(f"NOTE: {text} has changed since {when}: {changes}")
        return reference
    say(f"{text} was listed {when}: {count(len(before.opened), 'object')}; --relist lists it again")
    if _starts_otherwise(prefix, before.opened):
        say(f"NOTE: {text} has changed since; --relist takes the objects that it has now")
    return before


def _listed(text: str, prefix: StorePath, indexes: IndexFolder) -> IndexReference:
    indexes.progress.say(f"listing {text}")
    stamp, objects = list_objects(prefix, indexes.progress)
    reference = indexes.reference(stamp)
    if not reference.exists:
        write_index(reference.path, objects, {})
    return reference


def _starts_otherwise(prefix: StorePath, index: FileIndex) -> bool:
    """Return whether one of the first objects is not in the index as it is now."""
    for info in islice(prefix.list(), _PAGE):
        now = {"name": info.name, "size": info.size, "version": info.version}
        if now not in index.find(info.name):
            return True
    return False


def differences(before: FileIndex, now: FileIndex) -> str:
    """Return how many objects are new, gone and replaced, in words; "": none."""
    with duckdb.connect() as database:
        database.register("before", before.table)
        database.register("now", now.table)
        [numbers] = database.sql(_DIFFERENCES).fetchall()
    states = zip(numbers, ("new", "gone", "replaced"), strict=True)
    return ", ".join(f"{number:,} {state}" for number, state in states if number)
