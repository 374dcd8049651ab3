"""`sgpipe train`, `sgpipe convert`, which makes the models that training starts from, and `sgpipe reproduce`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.training.recipe import DataConfig


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    data: Annotated[list[str] | None, cli.option("Shards: FOLDER, FOLDER@WEIGHT. Repeatable.", panel=cli.DATA)] = None
    val: Annotated[list[str] | None, cli.option("Shards to validate on. Repeatable.", panel=cli.DATA)] = None
    judgements: Annotated[list[str] | None, cli.option("Judged run, for a tagger. Repeatable.", panel=cli.DATA)] = None
    images: cli.MovedImages = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    certified: cli.Certified = False

    def applied_to(self, data: DataConfig, limit: int | None) -> DataConfig:
        from sgpipe.training.recipe import shards_options
        from sgpipe.utils.config_file import changed

        judged = [{**each, "judged": True} for each in shards_options(self.judgements or (), self.images)]
        shards = shards_options(self.data, self.images) if self.data else [each.model_dump() for each in data.train]
        settings = changed(
            data,
            train=[*shards, *judged] if self.data or judged else None,
            val=shards_options(self.val, self.images) if self.val else None,
            calibration=self.calibration,
            precision=self.precision,
            limit=limit,
        )
        if not self.certified:
            return settings
        if settings.calibration is not None:
            raise UserError("--certified chooses the relations: leave out --calibration")
        runs = [part.shards for part in settings.train if not part.judged]
        return changed(settings, threshold=cli.certified_threshold(runs))


def train(
    *,
    recipe: Annotated[str, typer.Argument(help="Packaged recipe (tagger, pretrain, hico …) or YAML file.")],
    out: Annotated[Path | None, cli.writes_folder("Folder for the model; a training in it is resumed.")] = None,
    shards: ShardsOptions,
    init: Annotated[str | None, cli.reads_model("Model to start from: folder, store, hub id or official .pth.")] = None,
    miniature: Annotated[bool, cli.option("A small model, for a laptop.", "--miniature", panel=cli.MODELS)] = False,
    epochs: Annotated[int | None, cli.option("Passes over the training data.", min=1)] = None,
    steps: Annotated[int | None, cli.option("Steps to train, instead of --epochs.", min=1)] = None,
    batch: Annotated[int | None, cli.option("Images per step, over all workers.", min=1)] = None,
    limit: cli.Limit = None,
    seed: cli.Seed = None,
    workers: Annotated[int | None, cli.option("Processes; Ray starts several.", min=1, panel=cli.COMPUTE)] = None,
    gpus: Annotated[float | None, cli.option("GPUs per worker, 0 to 1.", min=0, max=1, panel=cli.COMPUTE)] = None,
    ray_address: cli.RayAddress = None,
    plan: Annotated[bool, cli.option("Measure a few steps: time, memory, days. Writes nothing.", "--plan")] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Train a tagger or a detector on shards.

    Examples:
      sgpipe train tagger --data vg/ --init detector/ --out tagger/
      sgpipe train tagger --miniature --data miniworld-relations/ --out small-tagger/
      sgpipe train tagger --data vg/ --judgements run/ --init detector/ --out tagger/
      sgpipe train one-gpu/tagger --data vg/ --init detector/ --plan
    """
    from sgpipe.training.metrics import print_training
    from sgpipe.training.recipe import load_train_recipe
    from sgpipe.utils.config_file import changed, parse_set

    if out is None and not plan:
        raise UserError("pass --out, the folder for the model, or --plan")
    if epochs is not None and steps is not None:
        raise UserError("--epochs and --steps both say when the training ends; pass one of them")
    loaded = load_train_recipe(recipe, parse_set(assign or []), miniature=miniature)
    optimisation = changed(loaded.optimisation, epochs=epochs, steps=steps, batch=batch)
    if epochs is not None:
        optimisation = replace(optimisation, steps=None)  # also of a recipe that trains by steps
    loaded = changed(
        loaded,
        seed=seed,
        model=changed(loaded.model, init=init),
        data=shards.applied_to(loaded.data, limit),
        optimisation=optimisation,
        workers=changed(loaded.workers, count=workers, gpus=gpus, address=ray_address),
    )
    from sgpipe.training import run  # it imports PyTorch

    if out is None or plan:
        found = run.plan_training(loaded, console.Progress())
        if not cli.printed_json(json_, asdict(found)):
            run.print_training_plan(found, console.output())
        return
    summary = run.train(loaded, out, console.Progress())
    network = out / summary.network.name
    if cli.printed_json(json_, {**asdict(summary), "out": str(out), "network": str(network)}):
        return
    option = "--tagger" if summary.kind == "tagger" else "--init"
    print_training(summary, f"saved the model; use it with {option} {network}", console.output())


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official .pth; with --as, a detector's.", exists=True)],
    out: Annotated[Path, cli.writes_folder("Folder for config.json, model.safetensors and the tokenizer.")],
    tokenizer: Annotated[str, cli.reads_model("RoBERTa (with --as) or its tokenizer.")] = "roberta-base",
    gating: Annotated[str | None, cli.option("Fusion gate (VXAc or GLIP), if the checkpoint does not name it.")] = None,
    verb_query: Annotated[str | None, cli.option("Type of relation query, if the checkpoint does not name it.")] = None,
    kind: Annotated[str | None, cli.option("Make parseda, parsed, tagger or rlipv1 of a detector.", "--as")] = None,
    queries: Annotated[int | None, cli.option("Keep only the first N queries, such as 128.")] = None,
    first_rows: Annotated[bool, cli.option("--queries: by row, as the official code.", "--first-rows")] = False,
    json_: cli.Json = False,
) -> None:
    """Convert an official checkpoint or a detector to a model.

    Examples:
      sgpipe convert RLIPv2_tagger.pth --out tagger/ --tokenizer roberta-base
    """
    from rlip_model.checkpoint import CheckpointError, TokenizerError, convert_detector
    from rlip_model.checkpoint import convert as run
    from sgpipe.files.model_cache import local_model

    tokenizer = local_model(tokenizer)
    parts: dict[str, list[str]] = {}
    try:
        if kind is None:
            run(checkpoint, out, tokenizer, gating, verb_query, queries, not first_rows)
        elif gating or verb_query or first_rows:
            raise UserError("--gating, --verb-query and --first-rows are for official checkpoints, not for --as")
        else:
            model = convert_detector(checkpoint, out, kind, tokenizer, 200 if queries is None else queries)
            kept = sorted({".".join(name.split(".")[:2]) for name in model.kept})
            parts = {"not_used_of_the_detector": list(model.unused), "not_from_the_detector": kept}
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    if cli.printed_json(json_, {"out": str(out), **parts}):
        return
    for what, names in parts.items():
        console.output().print(f"weights {what.replace('_', ' ')}: {', '.join(names) or 'none'}")
    console.output().print(f"wrote {out}")


def reproduce(
    ctx: typer.Context,
    paper: Annotated[Literal["rlipv2"], typer.Argument(help="The paper.")],
    out: Annotated[Path, cli.writes_folder("Folder for everything; steps that are done are skipped.")],
    data: Annotated[Path | None, cli.option("Folder of datasets and weights.", exists=True, file_okay=False)] = None,
    scale: Annotated[Literal["published", "one-gpu", "miniature"], cli.option("miniature: no data.")] = "published",
    until: Annotated[str | None, cli.option("Last step to run.")] = None,
    dry_run: Annotated[bool, cli.option("Only print the commands and what is missing.", "--dry-run")] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Reproduce a paper: run a list of sgpipe commands, from its downloads to its tables.

    The same command resumes it. Ends with a table beside the published figures,
    and OUT/report.html with the curves of all trainings.

    Examples:
      sgpipe reproduce rlipv2 --scale miniature --out small/
      sgpipe reproduce rlipv2 --scale one-gpu --data downloads/ --out rlipv2/
    """
    from rich.table import Table

    from sgpipe.cli import reproduction as steps

    loaded = steps.load_reproduction(paper, scale, assign or [])
    tasks = steps.make_tasks(loaded, data or Path("DATA"), out, until)
    root: Any = ctx.find_root().command
    if dry_run:
        shown = [{**vars(task.step), "command": task.command, "missing": task.missing} for task in tasks]
        if not cli.printed_json(json_, {"note": loaded.note, "steps": shown}):
            cli.show(f"{loaded.title}. {loaded.note}")
            for number, task in enumerate(tasks, 1):
                cli.show(f"[{number}/{len(tasks)}] {task.step.name}: {task.step.gives}")
                cli.show("\n".join([f"  {task.command}", *(f"  missing: {file}" for file in task.missing)]))
        return

    def run(words: Sequence[str]) -> int:
        quiet = ["--quiet"] if console.QUIET in os.environ else []
        try:
            return root.main([*quiet, *words], prog_name="sgpipe", standalone_mode=False) or 0
        except SystemExit as end:
            return int(end.code or 0)

    state = steps.reproduce(loaded, tasks, out, run, console.Progress())
    if not cli.printed_json(json_, {"out": str(out), "note": loaded.note, "steps": state}):
        titles, rows = steps.figures(loaded, tasks, state)
        table = Table(*titles, title=f"{loaded.title}: percent, here and published", caption=loaded.note)
        for row in rows:
            table.add_row(*row)
        if rows:
            console.output().print(table)
        cli.show(f"wrote {out / steps.REPORT}")
