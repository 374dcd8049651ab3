"""What a run has paid for tokens, over all commands that resume it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import StagePlan
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT, Spending, price_text, tokens_of


class RunSpending:
    """Counts the tokens of a run.

    Attributes:
        spending: what this command and earlier ones cost.
    """

    def __init__(
        self, spending: Spending, shards: Iterable[ShardEntry], answers: Counter[str]
    ) -> None:
        """`answers`: the tokens of those that came to this machine."""
        self._listed = Counter[str]()
        for shard in shards:
            self._listed.update(tokens_of(shard.counts))
        # of images that have no shard yet, such as those of a command that was killed
        self._unlisted = answers - self._listed
        paid = spending.cost(self._listed + self._unlisted)
        self.spending = replace(spending, paid_before=paid)

    def with_unlisted(self, shard: ShardEntry) -> ShardEntry:
        """Return a new shard, with tokens that no other one has."""
        tokens = tokens_of(shard.counts) + self._unlisted
        self._unlisted = Counter()
        self._listed.update(tokens)
        return replace(shard, counts=shard.counts | tokens)

    def check(self) -> None:
        """Raises EngineError: the shards have used up the budget, which workers on several machines
        learn too late.
        """
        max_cost = self.spending.max_cost
        cost = self.spending.cost(self._listed)
        if max_cost is not None and cost >= max_cost:
            raise EngineError(self.spending.used_up(cost))

    def note(self) -> str:
        """Return the tokens and the cost of the run so far; "": no model is served."""
        return spending_text(self._listed, self.spending)


def spending_text(counts: Mapping[str, int], spending: Spending) -> str:
    """Return tokens in words, with their cost if prices are known; "": there are none."""
    if not counts.get(PROMPT):
        return ""
    text = f"{counts[PROMPT] + counts.get(COMPLETION, 0):,} tokens"
    if counts.get(CACHED):
        text += f" ({counts[CACHED]:,} cached)"
    if spending.prices is not None:
        text += f", cost {price_text(spending.cost(counts))}"
    return text


def asks_endpoint(stages: StagePlan) -> bool:
    """Return whether a stage asks a served model."""
    return any(stages.section(name).requests_in_flight for name in stages.names)


def check_prices(spending: Spending, stages: StagePlan) -> None:
    """Raise UserError if there are prices, but no stage asks a served model."""
    if spending.prices is not None and not asks_endpoint(stages):
        raise UserError(
            "--prompt-price and --completion-price: no stage of this run asks an endpoint, so"
            " there are no tokens; omit them"
        )
