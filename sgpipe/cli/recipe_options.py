"""The options that change a recipe, of `sgpipe generate` and `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from sgpipe.cli import options as cli
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.recipe import Recipe, SourceConfig


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The images to label, and what is known of them, instead of those of the recipe."""

    root: Annotated[
        cli.Place | None, cli.reads_stored("Folder or store that the recipe's paths are in.")
    ] = None
    images: Annotated[
        str | None, cli.option("Folder, .zip, .tar, folder of these, or s3://….", panel=cli.DATA)
    ] = None
    dataset: Annotated[
        str | None, cli.option("Recipe hub: folder of Parquet files, or hub id.", panel=cli.DATA)
    ] = None
    annotations: Annotated[
        cli.Place | None, cli.reads_stored("Annotation file for --images.", exists=False)
    ] = None
    captions: Annotated[
        cli.Place | None, cli.reads_stored("COCO captions; no captioner runs.", exists=False)
    ] = None
    split: cli.GuessedSplit = None
    truth: Annotated[
        cli.Place | None, cli.reads_stored("Ground truth; prints precision and recall.")
    ] = None
    image_data: cli.ImageData = None
    certified: cli.Certified = False

    def applied_to(self, source: SourceConfig, extend: str | None = None) -> SourceConfig:
        """Return the source, or the run `extend` as one, with these settings. Raises UserError: one
        needs another.
        """
        from sgpipe.files.image_roots import check_images, located
        from sgpipe.files.locations import absolute_location, content_id
        from sgpipe.recipe import WHOLE
        from sgpipe.sources.annotated import infer_split
        from sgpipe.sources.opening import open_parent
        from sgpipe.utils.config_file import changed

        if extend is not None:
            if any((self.root, self.dataset, self.annotations, self.captions, self.split)):
                omitted = "--root, --dataset, --annotations, --captions, --split"
                raise UserError(f"--extend takes the run's data: omit {omitted}")
            moved = {
                shard.split: {"images": self.images}
                for shard in open_parent(extend).manifest.shards
            }
            least = cli.certified_threshold([extend]) if self.certified else source.threshold
            values = {"format": "run", "run": absolute_location(extend), "threshold": least}
            source = type(source).model_validate(values | {"splits": moved if self.images else {}})
        elif self.certified:
            raise UserError("--certified says what --extend keeps of a run: pass --extend, too")
        if self.dataset is not None and source.format != "hub":
            raise UserError(
                "--dataset is for the recipe hub: sgpipe generate hub --dataset FOLDER_OR_ID"
            )
        needy = (self.annotations, self.captions, None if self.dataset else self.split)
        if self.images is None and any(option is not None for option in needy):
            raise UserError("--annotations, --captions and --split need --images")
        source = changed(
            source,
            root=self.root,
            hub=changed(
                source.hub, dataset=self.dataset, split=self.split if self.dataset else None
            ),
            ground_truth=self.truth and absolute_location(self.truth),
            image_data=self.image_data and absolute_location(self.image_data),
        )
        if self.images is None or extend is not None:
            return source
        name = self.split or WHOLE
        if self.split is None and self.annotations is not None and source.format != "folder":
            check_images(located(self.images, source.root))  # what is missing names no split
            content_id(source.path(self.annotations))
            name = infer_split(self.annotations, self.images)
        split = {"annotations": self.annotations, "images": self.images, "captions": self.captions}
        return changed(source, splits={name: split})


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Models and settings, instead of those of the recipe."""

    detector: cli.Detector = None
    captioner: cli.Captioner = None
    tagger: cli.Tagger = None
    threshold: cli.MinConfidence = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    limit: cli.Limit = None
    seed: cli.Seed = None
    ray_address: cli.RayAddress = None
    assign: cli.Settings = None

    def applied_to(
        self,
        recipe: str | None,
        data: SourceOptions,
        parent: str | None = None,
        extend: str | None = None,
        **how: Any,
    ) -> Recipe:
        """Return the recipe, or that of a parent or extended run, changed so; `how`: its engine.
        Raises UserError.
        """
        from sgpipe.recipe import load_recipe
        from sgpipe.utils.config_file import changed, parse_set

        settings = settings_with_tagger(recipe, self.tagger, parse_set(self.assign or []))
        if data.images and recipe is None and parent is not None:
            settings = {"source.root": None, **settings}
        if parent is not None and extend is not None:
            raise UserError(
                "--from takes stages over from a run, --extend relations: pass one of them"
            )
        if recipe is None and (parent or extend):
            from sgpipe.generation.identity import extended_recipe, parent_recipe

            if self.captioner is not None:
                settings = {"caption.captioner": self.captioner, **settings}
            loaded = (
                extended_recipe(extend, settings)
                if extend
                else parent_recipe(str(parent), settings)
            )
        else:
            loaded = load_recipe(recipe or "miniworld", settings)
        caption = changed(loaded.caption, captioner=self.captioner)
        tag = loaded.tag
        if self.threshold is not None:
            if self.precision is not None:
                raise UserError("--threshold and --precision both choose the relations; pass one")
            tag = tag.model_copy(update={"precision": None})
        replaces_layout = (
            self.tagger and loaded.tag.method == "layout" and "tag.method" not in settings
        )
        return changed(
            loaded,
            limit=self.limit,
            seed=self.seed,
            source=data.applied_to(loaded.source, extend),
            detect=changed(loaded.detect, detector=self.detector),
            caption=caption.model_copy(update={"captioner": None}) if data.captions else caption,
            tag=changed(
                tag,
                threshold=self.threshold,
                method="auto" if replaces_layout else None,
                tagger=self.tagger,
                calibration=self.calibration,
                precision=self.precision,
            ),
            engine=changed(loaded.engine, address=self.ray_address, **how),
        )


def settings_with_tagger(
    recipe: str | None, tagger: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings; a tagger or layout model, with its own threshold, replaces the CLIP of
    the recipe photos.
    """
    from sgpipe.recipe import TagConfig

    replaced = {"tag.method": "auto", "tag.prior": None, "tag.threshold": TagConfig().threshold}
    return replaced | settings if tagger and recipe == "photos" else settings
