"""sgpipe: turn an object-detection dataset into a scene-graph dataset, and train RLIPv2 on it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# registers its networks with AutoModel, once transformers is imported
import rlip_model as rlip_model
from sgpipe.utils import __version__

if TYPE_CHECKING:
    from sgpipe.errors import EngineError as EngineError
    from sgpipe.errors import ImageError as ImageError
    from sgpipe.errors import UserError as UserError
    from sgpipe.evaluation.plugin import Evaluator as Evaluator
    from sgpipe.export.formats import Format as Format
    from sgpipe.export.rows import ExportRows as ExportRows
    from sgpipe.export.rows import Members as Members
    from sgpipe.export.rows import write_json as write_json
    from sgpipe.generation.run import generate as generate
    from sgpipe.pipeline import Pipeline as Pipeline
    from sgpipe.pipeline import RelationAnnotator as RelationAnnotator
    from sgpipe.pipeline import SceneGraph as SceneGraph
    from sgpipe.recipe import load_recipe as load_recipe
    from sgpipe.records import Attribute as Attribute
    from sgpipe.records import Box as Box
    from sgpipe.records import Caption as Caption
    from sgpipe.records import Pair as Pair
    from sgpipe.records import Record as Record
    from sgpipe.records import Relation as Relation
    from sgpipe.records import Triplet as Triplet
    from sgpipe.sources.annotated import AnnotationSource as AnnotationSource
    from sgpipe.sources.annotated import DatasetClasses as DatasetClasses
    from sgpipe.sources.plugin import Source as Source
    from sgpipe.stages.base import ImageStage as ImageStage
    from sgpipe.stages.base import Stage as Stage
    from sgpipe.stages.caption.captioner import Captioner as Captioner
    from sgpipe.stages.caption.captioner import CaptionInput as CaptionInput
    from sgpipe.stages.context import StageContext as StageContext
    from sgpipe.stages.served.chat import Refusal as Refusal
    from sgpipe.stages.tag.tagger import Tagger as Tagger
    from sgpipe.storage.run_records import Run as Run
    from sgpipe.storage.run_records import iter_records as iter_records
    from sgpipe.training.recipe import load_train_recipe as load_train_recipe
    from sgpipe.training.run import train as train

_NOUNS = ("Attribute", "Box", "Caption", "Pair", "Record", "Relation", "Triplet")
# Imported when they are asked for: they take seconds, and the command line must start without them.
_PUBLIC = {
    **dict.fromkeys(("EngineError", "ImageError", "UserError"), "sgpipe.errors"),
    **dict.fromkeys(("Pipeline", "RelationAnnotator", "SceneGraph"), "sgpipe.pipeline"),
    **dict.fromkeys(("Run", "iter_records"), "sgpipe.storage.run_records"),
    **dict.fromkeys(("Captioner", "CaptionInput"), "sgpipe.stages.caption.captioner"),
    **dict.fromkeys(("ExportRows", "Members", "write_json"), "sgpipe.export.rows"),
    "Evaluator": "sgpipe.evaluation.plugin",
    "Format": "sgpipe.export.formats",
    **dict.fromkeys(_NOUNS, "sgpipe.records"),
    **dict.fromkeys(("AnnotationSource", "DatasetClasses"), "sgpipe.sources.annotated"),
    "Source": "sgpipe.sources.plugin",
    "Refusal": "sgpipe.stages.served.chat",
    **dict.fromkeys(("ImageStage", "Stage"), "sgpipe.stages.base"),
    "StageContext": "sgpipe.stages.context",
    "Tagger": "sgpipe.stages.tag.tagger",
    "generate": "sgpipe.generation.run",
    "load_recipe": "sgpipe.recipe",
    "load_train_recipe": "sgpipe.training.recipe",
    "train": "sgpipe.training.run",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
