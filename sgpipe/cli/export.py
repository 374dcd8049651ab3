"""`sgpipe export` and `push`: a run or a model for others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.registry import BUILT_IN
from sgpipe.utils import console
from sgpipe.utils.console import count


@dataclass(frozen=True, kw_only=True)
class WrittenOptions:
    """Which relations a dataset for others gets, and whether it gets the images."""

    threshold: Annotated[
        float | None, declare.option("Minimum confidence. Default: 0.2; hf: none.", min=0, max=1)
    ] = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    certified: cli.Certified = False
    embed: Annotated[
        bool, declare.option("Store images in rows, in tasks or in the folder.", "--embed")
    ] = False
    images: cli.MovedImages = None

    def as_arguments(self, run: Any) -> dict[str, Any]:
        """Return the arguments of `export_run` and `push_run`.

        Raises:
            UserError: the certificate is not valid.
        """
        arguments = dict(vars(self))
        is_certified = arguments.pop("certified")
        return arguments | {"certificate": cli.certificate_of(run) if is_certified else None}


def export(
    *,
    run: cli.StoredRuns,
    to: Annotated[
        str, declare.option(f"Format: {', '.join(BUILT_IN['format'])}; or package.module:NAME.")
    ],
    out: Annotated[Path, declare.writes_folder("New folder for the files.")],
    origin: Annotated[
        str | None, declare.option("Only these, such as person,tagger. Default: all.")
    ] = None,
    relations: WrittenOptions,
    images_url: Annotated[
        str | None, declare.option("Start of addresses of images: https://….")
    ] = None,
    coordinates: Annotated[
        Literal["pixel", "normalised", "0-1000"], declare.option("Of boxes in instructions.")
    ] = "pixel",
    templates: Annotated[
        Path | None, declare.reads_file("YAML: other templates of instructions.", panel=None)
    ] = None,
    seed: cli.Seed = None,
    parquet: Annotated[
        bool, declare.option("Instructions as Parquet, not JSON lines.", "--parquet")
    ] = False,
    json_: cli.Json = False,
) -> None:
    """Convert a run to another format.

    For the Hugging Face hub, COCO tools, scene-graph models, RLIPv2, HICO-DET,
    Label Studio, FiftyOne or the training of vision-language models.

    Examples:
      sgpipe export coco-relations/ --to hf --embed --out for-the-hub/
      sgpipe export coco-relations/ --to rlipv2 --threshold 0.2 --out rlipv2/
      sgpipe export coco-relations/ --to label-studio --out for-label-studio/
      sgpipe export coco-relations/ --to instructions --calibration calibration.json --precision 0.9
      --out instructions/
    """
    from sgpipe.export.run import export_run
    from sgpipe.records import ORIGINS

    written = export_run(
        run,
        to,
        out,
        images_url=images_url,
        coordinates=coordinates,
        templates=templates,
        seed=seed,
        parquet=parquet,
        origins=ORIGINS if origin is None else origin.split(","),
        **relations.as_arguments(run),
    )
    if written.note:
        cli.say(f"NOTE: {written.note}")
    if cli.printed_json(json_, vars(written) | {"root": str(out)}):
        return
    cli.show(f"wrote {count(len(written.files), 'file')} to {out}")
    _show_left_out(written.left_out)


def _show_left_out(left_out: Mapping[str, int]) -> None:
    for reason, number in left_out.items():
        cli.show(f"left out: {reason} ({number:,})")


def push(
    *,
    source: Annotated[
        declare.Place,
        declare.stored_argument(
            "Folder or store of a run, several runs ('labels/part-*'), a model or a training.",
            callback=declare.stored_runs,
        ),
    ],
    to: Annotated[
        str, declare.option("Dataset or model on the hub: USER/NAME or ORGANISATION/NAME.")
    ],
    public: Annotated[
        bool, declare.option("Make what is new public. Default: private.", "--public")
    ] = False,
    relations: WrittenOptions,
    licence: Annotated[
        str | None, declare.option("Of a model, such as apache-2.0.", "--license")
    ] = None,
    evaluations: Annotated[
        list[Path] | None, declare.option("By `eval --json-file`.", "--evaluation", exists=True)
    ] = None,
    json_: cli.Json = False,
) -> None:
    """Upload a run to the Hugging Face hub as a dataset, or a model as a model, with a card.

    A run is exported as by `export --to hf`. The same command continues an
    interrupted upload.

    Examples:
      sgpipe push coco-relations/ --to anna/coco-relations
      sgpipe push coco-relations/ --to anna/coco-relations --embed --threshold 0.2 --public
      sgpipe push tagger/ --to anna/tagger --license apache-2.0
    """
    if console.QUIET not in os.environ:
        _show_progress_of_uploads()
    from sgpipe.export.push import push_model, push_run
    from sgpipe.files.model_cache import local_model
    from sgpipe.recipe import network_folder

    if _is_model(source):
        if relations != WrittenOptions():
            raise UserError(
                f"{source} is a model: only --public, --license and --evaluation are for models"
            )
        folder = network_folder(Path(local_model(str(source))))
        pushed = push_model(
            folder, to, public=public, licence=licence, evaluations=evaluations or ()
        )
    else:
        if licence or evaluations:
            raise UserError("--license and --evaluation are for models")
        pushed = push_run(source, to, public=public, **relations.as_arguments(source))
    if cli.printed_json(json_, pushed.as_json()):
        return
    seen = "private: only you or your organisation can see it" if pushed.private else "public"
    cli.show(f"pushed {count(len(pushed.files), 'file')} to {pushed.url} ({seen})")
    if pushed.exported is not None:
        if pushed.exported.note:
            cli.say(f"NOTE: {pushed.exported.note}")
        _show_left_out(pushed.exported.left_out)


def _show_progress_of_uploads() -> None:
    """Undo what hides the progress of the hub in commands that load models; it may take hours."""
    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # read at import
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_info()


def _is_model(source: declare.Place) -> bool:
    """Whether a folder or store contains a network instead of a run."""
    from sgpipe.files.locations import info_of
    from sgpipe.recipe import network_folder
    from sgpipe.storage.manifest import MANIFEST

    if info_of(source / MANIFEST) is not None:
        return False
    if not isinstance(source, Path):
        return True
    return (network_folder(source) / "config.json").is_file()
