"""The options that say what tokens of served models cost, of `sgpipe generate` and `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from sgpipe.cli import declare
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.storage.tokens import Prices, Spending

_MOST = 1e9


@dataclass(frozen=True, kw_only=True)
class PriceOptions:
    """Prices of a million tokens of served models."""

    prompt_price: Annotated[
        float | None, declare.option("Price of a million prompt tokens.", min=0, max=_MOST)
    ] = None
    cached_price: Annotated[
        float | None,
        declare.option("Of those that the server had cached; default: the same.", min=0, max=_MOST),
    ] = None
    completion_price: Annotated[
        float | None, declare.option("Price of a million tokens of answers.", min=0, max=_MOST)
    ] = None

    @property
    def by_token(self) -> Prices | None:
        """The prices; None: they are not known. Raises UserError: one of them is missing."""
        from sgpipe.storage.tokens import Prices

        prompt = self.prompt_price
        completion = self.completion_price
        if prompt is None and completion is None and self.cached_price is None:
            return None
        if prompt is None or completion is None:
            raise UserError(
                "tokens are priced by --prompt-price and --completion-price, of a million: pass"
                " both, 0 for what is free"
            )
        cached = prompt if self.cached_price is None else self.cached_price
        return Prices(prompt, completion, cached)

    def spending(self, max_cost: float | None) -> Spending:
        """Return what a run may cost. Raises UserError: that cannot be told, or is nothing."""
        from sgpipe.storage.tokens import Spending

        prices = self.by_token
        if max_cost is None:
            return Spending(prices)
        if not max_cost > 0:
            raise UserError(f"--max-cost {max_cost:g} pays for no request: pass more, or omit it")
        if prices is None:
            raise UserError("--max-cost needs prices: pass --prompt-price and --completion-price")
        if not prices.prompt and not prices.completion:
            raise UserError(f"--max-cost {max_cost:g}: at prices of 0 nothing costs; omit it")
        return Spending(prices, max_cost)
