"""The section `source` of a recipe: which images are labelled, and what is known of them."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from sgpipe.files.image_roots import located
from sgpipe.files.locations import Location, below, location
from sgpipe.utils import LARGEST_SEED, BoxForm
from sgpipe.utils.config_file import Config

WHOLE = "all"  # the split of images that have no other
_DRAWN = ".sgpipe/drawn/"  # within a run of the miniworld
SplitName = Annotated[str, StringConstraints(pattern=r"^\w+$", max_length=64)]
ImageLocation = Annotated[
    str,
    BeforeValidator(lambda place: located(place) if isinstance(place, str | Location) else place),
]


def _as_location(place: object) -> Location:
    if not isinstance(place, str | Location):
        raise ValueError("expected a path or a URI")
    return location(place)


StoredPath = Annotated[
    Location, PlainValidator(_as_location), PlainSerializer(str, when_used="json")
]


class SplitConfig(Config):
    """The files of one split."""

    annotations: StoredPath | None = Field(
        None, description="COCO instances JSON, also .gz; null with format: folder"
    )
    images: ImageLocation = Field(
        description="folder, .zip or .tar archive, a folder of these, or a store (s3://…)"
    )
    captions: StoredPath | None = Field(
        None, description="COCO captions JSON; used if caption.captioner is null"
    )
    inventory: StoredPath | None = Field(
        None,
        description="list of the images (S3 Inventory, Parquet, CSV, text) to read, not to list",
    )


class MiniworldConfig(Config):
    """The images that format: miniworld generates."""

    images: int = Field(200, ge=1, description="number of images")
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="another seed gives other images")
    split: Literal["train", "val", "test-compositional"] = Field(
        "val", description="the last: new combinations"
    )


class HubColumns(Config):
    """The columns of the Parquet files; a dot leads into a column of columns: objects.bbox."""

    image: str | None = Field(None, description="the images; null: the only column of images")
    id: str | None = Field(
        None, description="ids; null: image_id or id if no two are the same, else the row's number"
    )
    width: str | None = Field(
        None, description="pixels; null: width, else the images themselves say it"
    )
    height: str | None = Field(
        None, description="pixels; null: height, else the images themselves say it"
    )
    boxes: str | None = Field(
        None, description="the boxes of an image; null: objects.bbox or a similar name"
    )
    classes: str | None = Field(
        None, description="the class of each box; null: objects.category or a similar name"
    )
    crowd: str | None = Field(
        None, description="whether a box is around a crowd; null: iscrowd beside the boxes"
    )
    captions: str | None = Field(
        None, description="captions, used if caption.captioner is null; null: none"
    )


class HubConfig(Config):
    """The dataset of format: hub."""

    dataset: str | None = Field(
        None, description="Parquet files: folder, store, or USER/NAME[@REVISION] of the hub"
    )
    subset: str | None = Field(
        None, description="subset (configuration); null: the only one, or default"
    )
    split: str | None = Field(None, description="split to label; null: all")
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="by number; null: as the dataset states"
    )
    columns: HubColumns = HubColumns()


class SourceConfig(Config):
    """The dataset to label."""

    format: Literal["coco", "objects365", "folder", "hub", "miniworld", "run"] = "coco"
    run: StoredPath | None = Field(
        None, description="the run or import of format: run, also in a store (--extend)"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="keep the run's relations from this confidence on"
    )
    root: StoredPath | None = Field(
        None, description="where relative paths begin; null: the working folder"
    )
    splits: dict[SplitName, SplitConfig] = Field(
        default_factory=dict, description="the files of each split"
    )
    boxes: BoxForm | None = None
    open_images: bool = True
    hub: HubConfig = HubConfig()
    miniworld: MiniworldConfig = MiniworldConfig()
    ground_truth: StoredPath | None = Field(
        None, description="run or import to measure precision and recall by"
    )
    image_data: StoredPath | None = Field(
        None, description="image_data.json, if VG is ground truth for COCO"
    )

    @field_validator("splits")
    @classmethod
    def _drawn_again(
        cls, splits: dict[str, SplitConfig], info: ValidationInfo
    ) -> dict[str, SplitConfig]:
        """Leave out the images that an earlier run of a saved recipe drew in its folder."""
        drawn = info.data.get("format") == "miniworld" and all(
            _DRAWN in split.images for split in splits.values()
        )
        return {} if drawn else splits

    @property
    def synthetic(self) -> dict[str, object] | None:
        """Return the settings of a source that generates its own images, or None."""
        return self.miniworld.model_dump() if self.format == "miniworld" else None

    def path(self, path: Location) -> Location:
        """`path` below `root`, unless it is a URI."""
        return below(self.root, path)

    def images(self, split: str) -> str:
        return located(self.splits[split].images, self.root)
