"""sgpipe: turn an object-detection dataset into a scene-graph dataset, and train RLIPv2 on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sgpipe.utils import __version__

if TYPE_CHECKING:
    from sgpipe.pipeline import Pipeline as Pipeline
    from sgpipe.pipeline import SceneGraph as SceneGraph

__all__ = ["Pipeline", "SceneGraph", "__version__"]


def __getattr__(name: str) -> Any:
    """The Python API, which takes seconds to import, when it is asked for: the command line starts without it."""
    if name in ("Pipeline", "SceneGraph"):
        from sgpipe import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
