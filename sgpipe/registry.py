"""What sgpipe ships for its open kinds, by name, as an installed package states what it adds.

A row is what an entry point is: a name, and the `package.module:attribute` that it stands for, which
is imported when it is asked for. They are not entry points, since these are read from files of all
installed packages, which takes longer than the command line needs to start, and since sgpipe also
runs from a folder that is not installed, as on the workers of a cluster.
"""

from collections.abc import Mapping
from typing import Literal

Kind = Literal["captioner", "evaluator", "format", "source", "stage", "tagger"]

# By the kind of model that captions.
_CAPTIONERS = {
    "served": "sgpipe.stages.caption.captioner:ServedCaptioner",
    "blip": "sgpipe.stages.caption.blip:BlipCaptioner",
    "vision-language": "sgpipe.stages.caption.vision_language:VisionLanguageCaptioner",
}
# As `--to` names them.
_FORMATS = {
    "hf": "sgpipe.export.hugging_face:HUGGING_FACE",
    "coco": "sgpipe.export.coco:COCO",
    "coco-rel": "sgpipe.export.coco_relations:COCO_RELATIONS",
    "sgg-benchmark": "sgpipe.export.sgg_benchmark:SGG_BENCHMARK",
    "vg": "sgpipe.export.visual_genome:VISUAL_GENOME",
    "rlipv2": "sgpipe.export.rlipv2:RLIPV2",
    "hico": "sgpipe.export.hico:HICO",
    "psg": "sgpipe.export.psg:PSG",
    "vg150": "sgpipe.export.vg150:VG150",
    "label-studio": "sgpipe.export.label_studio:LABEL_STUDIO",
    "fiftyone": "sgpipe.export.fiftyone:FIFTYONE",
    "webdataset": "sgpipe.export.hugging_face:WEBDATASET",
    "instructions": "sgpipe.export.instructions:INSTRUCTIONS",
}
# As `sgpipe import` names them. Rows of the hub are read with their images, by a command alone.
_SOURCES = {
    "vg": "sgpipe.sources.visual_genome:VISUAL_GENOME",
    "hico": "sgpipe.sources.hoi:HICO_SOURCE",
    "vcoco": "sgpipe.sources.hoi:VCOCO_SOURCE",
    "openimages": "sgpipe.sources.hoi:OPEN_IMAGES_SOURCE",
    "psg": "sgpipe.sources.psg:PSG",
    "rlipv2": "sgpipe.sources.pseudo_labels:RLIPV2",
    "svg": "sgpipe.sources.svg:SVG",
    "vg150": "sgpipe.sources.vg150:VG150",
    "gbc": "sgpipe.sources.gbc:GBC",
    "coco-rel": "sgpipe.sources.coco:COCO_RELATIONS",
    "coco": "sgpipe.sources.coco:COCO",
    "label-studio": "sgpipe.sources.label_studio:LABEL_STUDIO",
}
# As the sections of a recipe choose them: `StageConfig.stage`.
_STAGES = {
    "detect": "sgpipe.stages.detect:DetectStage",
    "load": "sgpipe.stages.base:LoadStage",
    "caption": "sgpipe.stages.caption.stage:CaptionStage",
    "parse": "sgpipe.stages.parse.stage:ParseStage",
    "ground": "sgpipe.stages.ground:GroundStage",
    "pair": "sgpipe.stages.pair:PairStage",
    "marks": "sgpipe.stages.marks:MarksStage",
    "layout pairs": "sgpipe.stages.layout_pair:LayoutPairStage",
    "assume": "sgpipe.stages.tag.methods:AssumedStage",
    "layout": "sgpipe.stages.tag.layout.stage:LayoutStage",
    "rtagger": "sgpipe.stages.tag.stage:TagStage",
    "score": "sgpipe.stages.tag.stage:ScoredStage",
}
# By `tag.method`.
_TAGGERS = {
    "clip": "sgpipe.stages.tag.tagger:ClipTagger",
    "vlm": "sgpipe.stages.tag.tagger:VlmTagger",
}

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "captioner": _CAPTIONERS,
    "evaluator": {},
    "format": _FORMATS,
    "source": _SOURCES,
    "stage": _STAGES,
    "tagger": _TAGGERS,
}
