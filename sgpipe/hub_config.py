"""Settings of a source in the hub's form: Parquet files with images and boxes, whose columns have many names."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sgpipe.utils.config_file import Config

BoxForm = Literal["xywh", "xyxy", "cxcywh", "xywhn", "xyxyn", "cxcywhn"]


class HubColumns(Config):
    """The columns of the Parquet files; a dot leads into a column of columns: objects.bbox."""

    image: str | None = Field(None, description="the images; null: the only column of images")
    id: str | None = Field(
        None, description="ids of the images; null: image_id or id if no two are the same, else the number of the row"
    )
    width: str | None = Field(None, description="pixels; null: width, else the images themselves say it")
    height: str | None = Field(None, description="pixels; null: height, else the images themselves say it")
    boxes: str | None = Field(None, description="the boxes of an image; null: objects.bbox or a similar name")
    classes: str | None = Field(None, description="the class of each box; null: objects.category or a similar name")
    crowd: str | None = Field(None, description="whether a box is around a crowd; null: iscrowd beside the boxes")
    captions: str | None = Field(None, description="captions, used if caption.captioner is null; null: none")


class HubConfig(Config):
    """The dataset of format: hub."""

    dataset: str | None = Field(
        None,
        description="folder of Parquet files, also in an object store; or the id of a dataset on the hub, such as "
        "USER/NAME or USER/NAME@REVISION",
    )
    subset: str | None = Field(
        None, description="subset (configuration) of the dataset; null: the only one, or default"
    )
    split: str | None = Field(None, description="split to label; null: all")
    boxes: Literal["auto"] | BoxForm = Field(
        "auto",
        description="what the four numbers of a box are; with an n they are parts of the image's width and height; "
        "auto: the form in which the boxes lie in their images",
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=1, description="class names by number; null: those that the dataset states"
    )
    columns: HubColumns = HubColumns()
