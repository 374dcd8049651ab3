"""The options of `sgpipe generate` that say which images are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgpipe.cli.options import GuessedSplit, ImageData, reads_dataset, reads_later, reads_run
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.recipe import SourceConfig


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The images to label, and what is known of them, instead of those of the recipe."""

    root: Annotated[
        Path | None,
        typer.Option(help="Folder or object store that the recipe's paths are relative to.", callback=reads_run),
    ] = None
    images: Annotated[
        str | None,
        typer.Option(
            help="Images, instead of the recipe's splits: a folder, .zip or .tar, a folder of these, or s3://….",
            callback=reads_later,
        ),
    ] = None
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Recipe hub: folder of Parquet files, or id of a dataset on the Hugging Face hub.",
            callback=reads_dataset,
        ),
    ] = None
    annotations: Annotated[Path | None, typer.Option(help="Annotation file for --images.", callback=reads_later)] = None
    captions: Annotated[
        Path | None, typer.Option(help="COCO captions file; the captioner does not run.", callback=reads_later)
    ] = None
    split: GuessedSplit = None
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Run or import with ground truth of the same images, also in a store; prints precision and recall.",
            callback=reads_run,
        ),
    ] = None
    image_data: ImageData = None

    def overrides(self) -> dict[str, Any]:
        """The settings of the options that need no others; None: not given."""
        from sgpipe.files.stored_files import joined

        return {
            "source.root": self.root,
            "source.hub.dataset": self.dataset,
            "source.hub.split": self.split if self.dataset else None,
            "source.ground_truth": self.truth and joined(Path.cwd(), self.truth),
            "source.image_data": self.image_data and joined(Path.cwd(), self.image_data),
        }

    def check(self, source: SourceConfig) -> None:
        """Raises UserError: an option needs another one, or another recipe."""
        if self.dataset is not None and source.format != "hub":
            raise UserError("--dataset is for the recipe hub: sgpipe generate hub --dataset FOLDER_OR_ID")
        if self.images is None and (self.annotations is not None or self.captions is not None):
            raise UserError("--annotations, --captions and --split need --images")
        if self.images is None and self.split is not None and self.dataset is None:
            raise UserError("--annotations, --captions and --split need --images")

    def split_name(self, source: SourceConfig, out: Path) -> str:
        """What the split of --images is called. Raises UserError: a path is missing, or nothing names the split."""
        from sgpipe.files.image_roots import check_images, located
        from sgpipe.files.stored_files import stamp_stored
        from sgpipe.recipe import WHOLE
        from sgpipe.sources.formats import infer_split, run_split

        if self.split is not None or self.images is None or self.annotations is None or source.format == "folder":
            return self.split or WHOLE
        check_images(located(self.images, source.root))
        stamp_stored(source.path(self.annotations))
        return infer_split(self.annotations, self.images, run_split(out))

    def of_split(self, name: str) -> dict[str, Any]:
        """The settings for a single split of --images."""
        config = {"annotations": self.annotations, "images": self.images, "captions": self.captions}
        return {"source.splits": {name: config}} | ({} if self.captions is None else {"caption.captioner": None})
