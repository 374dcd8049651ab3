"""What the cards of all models of the drawn world have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Making:
    """What the training of a model took, in CPU-seconds, and gave."""

    seconds: float
    parameters: int


def markdown_table(rows: list[list[str]]) -> str:
    """Rows of cells, the first of them the heads, as Markdown."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])
