"""The options that change a recipe, of `sgpipe generate` and `plan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.recipe import Recipe, SourceConfig, TagConfig


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The images to label, and what is known of them, instead of those of the recipe."""

    root: Annotated[
        declare.Place | None,
        declare.reads_stored("Folder or store that the recipe's paths are in."),
    ] = None
    images: Annotated[
        str | None,
        declare.option("Folder, .zip, .tar, folder of these, or s3://….", panel=declare.DATA),
    ] = None
    dataset: Annotated[
        str | None,
        declare.option("Recipe hub: folder of Parquet files, or hub id.", panel=declare.DATA),
    ] = None
    annotations: Annotated[
        declare.Place | None, declare.reads_stored("Annotation file for --images.", exists=False)
    ] = None
    captions: Annotated[
        declare.Place | None,
        declare.reads_stored("COCO captions; no captioner runs.", exists=False),
    ] = None
    inventory: Annotated[
        declare.Place | None,
        declare.reads_stored(
            "List of the images (S3 Inventory, Parquet, CSV, text).", exists=False
        ),
    ] = None
    split: cli.GuessedSplit = None
    truth: Annotated[
        declare.Place | None, declare.reads_stored("Ground truth; prints precision and recall.")
    ] = None
    image_data: cli.ImageData = None
    certified: cli.Certified = False

    def applied_to(self, source: SourceConfig, extend: str | None = None) -> SourceConfig:
        """Return a source with these settings.

        Args:
            source: of the recipe.
            extend: a run, which is the source instead.

        Raises:
            UserError: an option needs or excludes another.
        """
        from sgpipe.files.locations import absolute_location
        from sgpipe.utils.config_file import changed

        if extend is not None:
            source = self._extended(source, extend)
        elif self.certified:
            raise UserError("--certified says what --extend keeps of a run: pass --extend, too")
        self._check_needs(source)
        hub_split = self.split if self.dataset else None
        source = changed(
            source,
            root=self.root,
            hub=changed(source.hub, dataset=self.dataset, split=hub_split),
            ground_truth=self.truth and absolute_location(self.truth),
            image_data=self.image_data and absolute_location(self.image_data),
        )
        if self.images is None or extend is not None:
            return source
        split = {
            "annotations": self.annotations,
            "images": self.images,
            "captions": self.captions,
            "inventory": self.inventory and absolute_location(self.inventory),
        }
        return changed(source, splits={self._split_name(source, self.images): split})

    def _extended(self, source: SourceConfig, run: str) -> SourceConfig:
        """Return a run as the source.

        Raises:
            UserError: other data is given, too.
        """
        from sgpipe.files.locations import absolute_location
        from sgpipe.sources.extended_run import open_parent

        others = (self.root, self.dataset, self.annotations, self.captions, self.inventory)
        if any((*others, self.split)):
            omitted = "--root, --dataset, --annotations, --captions, --inventory, --split"
            raise UserError(f"--extend takes the run's data: omit {omitted}")
        shards = open_parent(run).manifest.shards
        moved = {shard.split: {"images": self.images} for shard in shards}
        values = {
            "format": "run",
            "run": absolute_location(run),
            "threshold": cli.certified_threshold([run]) if self.certified else source.threshold,
            "splits": moved if self.images else {},
        }
        return type(source).model_validate(values)

    def _check_needs(self, source: SourceConfig) -> None:
        """Check that each option comes with the one that it belongs to.

        Raises:
            UserError: an option is given without the one that it belongs to.
        """
        if self.dataset is not None and source.format != "hub":
            raise UserError(
                "--dataset is for the recipe hub: sgpipe generate hub --dataset FOLDER_OR_ID"
            )
        image_split = None if self.dataset else self.split
        described = (self.annotations, self.captions, self.inventory, image_split)
        if self.images is None and any(described):
            raise UserError("--annotations, --captions, --inventory and --split need --images")

    def _split_name(self, source: SourceConfig, images: str) -> str:
        """Return the split of --images: as given, or as its annotations and folder are named."""
        from sgpipe.files.image_roots import check_images, located
        from sgpipe.files.locations import content_id
        from sgpipe.recipe import WHOLE
        from sgpipe.sources.annotated import infer_split

        if self.split:
            return self.split
        if self.annotations is None or source.format == "folder":
            return WHOLE
        check_images(located(images, source.root))  # what is missing names no split
        content_id(source.path(self.annotations))
        return infer_split(self.annotations, images)


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
    part: cli.PartOfImages = None
    seed: cli.Seed = None
    ray_address: cli.RayAddress = None
    assign: cli.Settings = None
    then: cli.OwnStages = None

    def applied_to(
        self,
        recipe: str | None,
        data: SourceOptions,
        parent: str | None = None,
        extend: str | None = None,
        store: str | None = None,
    ) -> Recipe:
        """Return a recipe with these settings.

        Args:
            recipe: its name or file; None: that of the parent or the extended run, or miniworld.
            data: the images to label.
            parent: a run whose stages are taken over.
            extend: a run that gets more relations.
            store: the object store that shards go to.

        Raises:
            UserError: a setting is not valid, or excludes another.
        """
        from sgpipe.utils.config_file import changed, parse_set

        settings = settings_with_tagger(recipe, self.tagger, parse_set(self.assign or []))
        settings = own_stages(self.then or []) | settings
        if data.images and recipe is None and parent is not None:
            settings = {"source.root": None, **settings}
        loaded = self._loaded(recipe, parent, extend, settings)
        caption = changed(loaded.caption, captioner=self.captioner)
        if data.captions:
            caption = caption.model_copy(update={"captioner": None})
        return changed(
            loaded,
            limit=self.limit,
            part=self.part,
            seed=self.seed,
            source=data.applied_to(loaded.source, extend),
            detect=changed(loaded.detect, detector=self.detector),
            caption=caption,
            tag=self._tag(loaded.tag, "tag.method" in settings),
            engine=changed(loaded.engine, address=self.ray_address, store=store),
        )

    def _loaded(
        self,
        recipe: str | None,
        parent: str | None,
        extend: str | None,
        settings: dict[str, Any],
    ) -> Recipe:
        """Return the recipe to change, with the settings of --set."""
        from sgpipe.recipe import load_recipe

        if parent is not None and extend is not None:
            raise UserError(
                "--from takes stages over from a run, --extend relations: pass one of them"
            )
        run = parent or extend
        if recipe is not None or run is None:
            return load_recipe(recipe or "miniworld", settings)
        from sgpipe.generation.identity import extended_recipe, parent_recipe

        if self.captioner is not None:
            settings = {"caption.captioner": self.captioner, **settings}
        if self.tagger is not None:
            settings = {"tag.tagger": self.tagger, **settings}
        return extended_recipe(run, settings) if extend else parent_recipe(run, settings)

    def _tag(self, tag: TagConfig, is_method_set: bool) -> TagConfig:
        """Return how relations are predicted, with these settings."""
        from sgpipe.utils.config_file import changed

        if self.threshold is not None:
            if self.precision is not None:
                raise UserError("--threshold and --precision both choose the relations; pass one")
            tag = tag.model_copy(update={"precision": None})
        replaces_layout = self.tagger and tag.method == "layout" and not is_method_set
        return changed(
            tag,
            threshold=self.threshold,
            method="auto" if replaces_layout else None,
            tagger=self.tagger,
            calibration=self.calibration,
            precision=self.precision,
        )


def own_stages(assignments: Iterable[str]) -> dict[str, list[str]]:
    """Return `["caption=own.words:Clean"]` as settings.

    Raises:
        UserError: it has another form.
    """
    settings: dict[str, list[str]] = {}
    for assignment in assignments:
        stage, equals, reference = assignment.partition("=")
        if not (stage and equals and reference):
            raise UserError(
                f"--then {assignment!r}: expected STAGE=package.module:Class, such as"
                " caption=own.words:Clean"
            )
        settings.setdefault(f"{stage}.then", []).append(reference)
    return settings


def settings_with_tagger(
    recipe: str | None, tagger: str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the settings; a tagger or layout model, with its own threshold, replaces the CLIP of
    the recipe photos.
    """
    from sgpipe.recipe import TagConfig

    if not tagger or recipe != "photos":
        return settings
    replaced = {"tag.method": "auto", "tag.prior": None, "tag.threshold": TagConfig().threshold}
    return replaced | settings
