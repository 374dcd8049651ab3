"""The tokens of requests to served models, as a manifest counts them, and what they cost."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

PROMPT = "prompt_tokens"
CACHED = "cached_tokens"
COMPLETION = "completion_tokens"
# among the counts of a shard; `CACHED` are a part of `PROMPT`
TOKENS = (PROMPT, CACHED, COMPLETION)
_PRICED = 1_000_000  # tokens


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency."""

    prompt: float
    completion: float
    cached: float

    def cost(self, counts: Mapping[str, int]) -> float:
        """Return what the `TOKENS` among counts cost."""
        cached = counts.get(CACHED, 0)
        cost = self.cached * cached
        cost += self.prompt * (counts.get(PROMPT, 0) - cached)
        cost += self.completion * counts.get(COMPLETION, 0)
        return cost / _PRICED


@dataclass(frozen=True)
class Spending:
    """What the requests of a command cost, and may cost.

    Attributes:
        prices: of tokens; None: not known.
        max_cost: of the run, with all commands that resume it; None: no limit.
        paid_before: what it had cost when this command began.
        command: tells its requests from those of others.
    """

    prices: Prices | None = None
    max_cost: float | None = None
    paid_before: float = 0.0
    command: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def left(self) -> float | None:
        """What the command may cost; None: no limit."""
        return None if self.max_cost is None else self.max_cost - self.paid_before

    def cost(self, counts: Mapping[str, int]) -> float:
        """Return what tokens cost; 0 if prices are not known."""
        return 0.0 if self.prices is None else self.prices.cost(counts)

    def used_up(self, cost: float) -> str:
        """Return the message for a run that has cost so much, and must not cost more."""
        return (
            f"--max-cost {self.max_cost:g} is used up: the run has cost {price_text(cost)}; its"
            " images and answers are kept, and a larger --max-cost continues"
        )


def tokens_of(counts: Mapping[str, int]) -> Counter[str]:
    """Return the tokens among counts."""
    return Counter({name: counts.get(name, 0) for name in TOKENS})


def price_text(cost: float) -> str:
    """Return a sum for people: two decimals, or two digits of less than a cent."""
    return f"{cost:,.2f}" if cost >= 0.01 or cost == 0 else f"{cost:.2g}"
