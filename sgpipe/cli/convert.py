"""`sgpipe convert`: a model from an official checkpoint or a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official .pth; with --as, a detector's.", exists=True)
    ],
    out: Annotated[
        Path, declare.writes_folder("Folder for config.json, model.safetensors and the tokenizer.")
    ],
    tokenizer: Annotated[
        str, declare.reads_model("RoBERTa (with --as) or its tokenizer.")
    ] = "roberta-base",
    gating: Annotated[
        str | None,
        declare.option("Fusion gate (VXAc or GLIP), if the checkpoint does not name it."),
    ] = None,
    verb_query: Annotated[
        str | None, declare.option("Type of relation query, if the checkpoint does not name it.")
    ] = None,
    kind: Annotated[
        str | None, declare.option("Make parseda, parsed, tagger or rlipv1 of a detector.", "--as")
    ] = None,
    queries: Annotated[
        int | None, declare.option("Keep only the first N queries, such as 128.")
    ] = None,
    first_rows: Annotated[
        bool, declare.option("--queries: by row, as the official code.", "--first-rows")
    ] = False,
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
            raise UserError(
                "--gating, --verb-query and --first-rows are for official checkpoints, not for --as"
            )
        else:
            model = convert_detector(
                checkpoint, out, kind, tokenizer, 200 if queries is None else queries
            )
            modules = sorted({".".join(name.split(".")[:2]) for name in model.unchanged})
            parts["not_used_of_the_detector"] = list(model.unused)
            parts["not_from_the_detector"] = modules
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    if cli.printed_json(json_, {"out": str(out), **parts}):
        return
    for part, names in parts.items():
        console.output().print(f"weights {part.replace('_', ' ')}: {', '.join(names) or 'none'}")
    console.output().print(f"wrote {out}")
