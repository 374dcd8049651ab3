"""Pages of HTML out of templates."""

import jinja2

from sgpipe.utils.console import count, isolated


def templates(loader: jinja2.BaseLoader) -> jinja2.Environment:
    """Return an environment for pages, which escapes every value."""
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": count,
        "isolated": isolated,
        "thousands": lambda number: f"{number:,}",
    }
    return environment
