"""All cases of bad input."""

from __future__ import annotations

from tests.bad_data import annotations, checkpoints, images, imports, recipes, shards

_GROUPS = (images, annotations, imports, recipes, checkpoints, shards)
CASES = [case for group in _GROUPS for case in group.CASES]
