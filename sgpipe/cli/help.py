"""The layout of `--help`: headings for commands and options, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup

from sgpipe.cli.options import Command

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Label images": ("label", "generate", "miniworld"),
    "Inspect runs": ("view", "correct", "stats", "calibrate", "score", "verify"),
    "Import and export": ("import", "export", "push", "fetch"),
    "Train and evaluate": ("train", "predict", "eval"),
    "Tools": ("doctor", "convert", "parse"),
}

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "label": (
        "label miniworld/images",
        "label photos/ --tagger tagger/ --out labelled/",
        "label a.jpg --boxes boxes.json",
    ),
    "generate": (
        "generate",
        "generate coco --root datasets/coco --tagger tagger/ --out coco-relations/",
        "generate folder --images photos/ --tagger tagger/ --out photo-relations/",
        "generate hub --dataset cppe-5 --split train --tagger tagger/ --out cppe-relations/",
        "generate coco --tagger tagger/ --limit 100 --set tag.threshold=0.1",
        "generate coco --root datasets/coco --tagger tagger/ --out run/ --store s3://bucket/coco",
        "generate --from coco-relations/ --tagger other-tagger/ --out retagged/",
    ),
    "miniworld": ("miniworld --count 200 --out miniworld/",),
    "view": (
        "view coco-relations/",
        "view coco-relations/ earlier-relations/ --as anna",
        "view s3://bucket/coco --read-only --no-browser",
    ),
    "correct": (
        "correct coco-relations/ --out corrected/",
        "correct coco-relations/ --judgements judgements.jsonl --conflicts latest --out corrected/",
    ),
    "stats": ("stats coco-relations/", "stats coco-relations/ --html report.html --sheet sheet.png"),
    "calibrate": (
        "calibrate coco-relations/ --verdicts verdicts.json",
        "calibrate coco-relations/ --truth vg/ --image-data image_data.json --out calibration.json",
    ),
    "score": (
        "score coco-relations/ --out scored/ --model ViT-B-32 --weights laion2b_s34b_b79k",
        "score coco-relations/ --out judged/ --by vlm --model Qwen/Qwen2.5-VL-3B-Instruct",
    ),
    "verify": ("verify coco-relations/", "verify coco-relations/ --repair"),
    "fetch": ("fetch s3://bucket/coco --out coco-relations/",),
    "import": ("import vg --annotations scene_graphs.json --images VG --out vg/",),
    "import vg": ("import vg --annotations scene_graphs.json --image-data image_data.json --images VG --out vg/",),
    "import hico": ("import hico --annotations trainval_hico.json --images train2015 --out hico/",),
    "import vcoco": ("import vcoco --annotations trainval_vcoco.json --images train2014 --out vcoco/",),
    "import openimages": ("import openimages --annotations OI_SGG_train_finetuning.json --images oi --out oi/",),
    "import rlipv2": ("import rlipv2 --annotations RLIPv2_train2017.json --images coco --out rlipv2-coco/",),
    "import coco-rel": (
        "import coco-rel --annotations train.json --relations rel.json --images vg --out vg150/",
        "import coco-rel --annotations train/_annotations.coco.json --images train --out psg/",
    ),
    "import coco": (
        "import coco --annotations instances_val.json --captions captions_val.json --images coco --out imported/",
    ),
    "import label-studio": ("import label-studio --annotations project.json --images photos --out corrected/",),
    "import hf": ("import hf --annotations for-the-hub/ --split val --out imported/",),
    "export": (
        "export coco-relations/ --to hf --embed --out for-the-hub/",
        "export coco-relations/ --to rlipv2 --threshold 0.2 --out rlipv2/",
        "export coco-relations/ --to label-studio --out for-label-studio/",
    ),
    "push": (
        "push coco-relations/ --to anna/coco-relations",
        "push coco-relations/ --to anna/coco-relations --embed --threshold 0.2 --public",
    ),
    "train": (
        "train tagger --data vg/ --init detector/ --out tagger/",
        "train tagger --miniature --data miniworld-relations/ --out small-tagger/",
        "train tagger --data vg/ --init detector/ --set optimisation.lr=1e-4 --out tagger/",
    ),
    "predict": ("predict detector/ --data hico-test/ --out predictions.json",),
    "eval": ("eval hico --predictions predictions.json --annotations test_hico.json",),
    "eval hico": ("eval hico --predictions predictions.json --annotations test_hico.json --json",),
    "eval vcoco": ("eval vcoco --predictions predictions.json --annotations vcoco_test.json --coco instances.json",),
    "eval openimages": ("eval openimages --predictions predictions.json --annotations vrd-test-anno.json",),
    "eval vg": ("eval vg --predictions predictions.json --annotations vg150.json --mode sgdet",),
    "eval boxes": (
        "eval boxes detected/ --truth instances_val2017.json --per-class",
        "eval boxes detected/ --truth coco/ --compare detected-by-another/",
    ),
    "eval labels": ("eval labels --pred coco-relations/ --truth vg/ --image-data image_data.json",),
    "doctor": ("doctor", "doctor --json"),
    "convert": ("convert RLIPv2_tagger.pth --out tagger/ --tokenizer roberta-base",),
    "parse": ("parse < captions.txt", "parse --parser learned < captions.txt"),
}


_DATA = (
    *(
        "root",
        "images",
        "dataset",
        "predictions",
        "annotations",
        "relations",
        "captions",
        "coco",
        "split",
        "boxes",
        "data",
        "val",
    ),
    *("limit", "truth", "wanted", "image_data", "image_paths", "categories"),
)
_MODELS = ("recipe", "model", "detector", "captioner", "tagger", "init", "miniature")
_COMPUTE = ("device", "dtype", "workers", "gpus", "ray_address")
OPTION_SECTIONS = {"Data": _DATA, "Models": _MODELS, "Compute": _COMPUTE}


_WHOLE_SENTENCE = 1000  # characters: the table of commands wraps what does not fit its width, and cuts nothing


class HelpfulGroup(TyperGroup):
    """Commands under headings, each with examples."""

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        command = super().get_command(ctx, cmd_name)
        path = " ".join([*ctx.command_path.split()[1:], cmd_name])
        if command is not None and path in EXAMPLES:
            lines = "\n".join(f"  sgpipe {example}" for example in EXAMPLES[path])
            command.epilog = f"Examples:\n\n\b\n{lines}"  # \b: do not wrap these lines
        return command

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        sections = SECTIONS if ctx.parent is None else {}
        grouped = {name for names in sections.values() for name in names}
        others = {"Commands": tuple(name for name in commands if name not in grouped)}
        for title, names in {**sections, **others}.items():
            rows = [
                (name, command.get_short_help_str(_WHOLE_SENTENCE)) for name in names if (command := commands.get(name))
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class GroupedCommand(Command):
    """A command whose many options are under headings."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Without hidden arguments, whose metavar is empty."""
        return [piece for piece in super().collect_usage_pieces(ctx) if piece != "[]"]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{title: [] for title in OPTION_SECTIONS}}
        for param in self.get_params(ctx):
            if (row := param.get_help_record(ctx)) is not None:
                sections.setdefault(_section(param), []).append(row)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _section(param: Any) -> str:
    if isinstance(param, TyperArgument):
        return "Arguments"
    return next((title for title, names in OPTION_SECTIONS.items() if param.name in names), "Options")
