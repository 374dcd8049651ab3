"""A stage of the user's own, which runs after one of sgpipe's: what it returns is checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sgpipe.errors import UserError
from sgpipe.plugins import failures_told, load_class
from sgpipe.recipe import options_of
from sgpipe.records import Record, to_table, type_fault
from sgpipe.stages.base import Stage
from sgpipe.stages.context import StageContext
from sgpipe.storage.shards import row_faults


class OwnStage(Stage):
    """A stage that `package.module:Class` names, in the process of the stage before it.

    Args:
        reference: the name.
        after: the stage before it.
        context: of that stage, by which the class makes its own.

    Raises:
        UserError: there is no such class, or it cannot be made.
    """

    def __init__(self, reference: str, after: Stage, context: StageContext) -> None:
        self.reference = reference
        self.resources = after.resources
        stage_class = load_class("stage", reference, Stage)
        self.name = stage_class.__name__
        with failures_told("stage", reference):
            options = options_of(context.config, "stage", reference)
            self._stage = stage_class.of(replace(context, options=options))
        self._stage.name = self.name
        self._stage.resources = self.resources

    def check(self) -> None:
        with failures_told("stage", self.reference):
            self._stage.check()

    def setup(self) -> None:
        with failures_told("stage", self.reference):
            self._stage.setup()

    def __call__(self, records: list[Record]) -> list[Record]:
        images = [(record.split, record.image_id) for record in records]
        with failures_told("stage", self.reference):
            returned: object = self._stage(records)
            return self.checked(returned, images)

    def checked(self, records: object, images: Sequence[tuple[str, str]]) -> list[Record]:
        """Return what the stage returns.

        Args:
            images: the split and id of each record that it got.

        Raises:
            UserError: it is not the records of these images, in their order, or a value of one
                cannot be stored.
        """
        items = self._same_images(records, images)
        for record in items:
            fault = type_fault(record)
            if fault is not None:
                raise UserError(f"stage {self.reference}: image {record.image_id!r}: {fault}")
        for split in sorted({split for split, _ in images}):
            table = to_table(record for record in items if record.split == split)
            for fault in row_faults(table, split):
                raise UserError(f"stage {self.reference}: {fault}")
        return items

    def _same_images(self, records: object, images: Sequence[tuple[str, str]]) -> list[Record]:
        """Return the records.

        Raises:
            UserError: they are not those of the images, in order.
        """
        items = list(records) if isinstance(records, Iterable) else []
        if all(isinstance(item, Record) for item in items):
            returned = [(record.split, record.image_id) for record in items]
            if returned == images:
                return items
        raise UserError(
            f"stage {self.reference} returns other records than it got: return all of them, in"
            " their order; record.fail(self.name, 'why') makes an error row of one"
        )


def own_stages(after: Stage, context: StageContext) -> list[OwnStage]:
    """Return the stages of the user's own that run after a stage, by its section of the recipe."""
    return [OwnStage(reference, after, context) for reference in context.config.own_stages]
