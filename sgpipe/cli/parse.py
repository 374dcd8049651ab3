"""`sgpipe parse`: captions as triplets."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from sgpipe.cli import declare
from sgpipe.errors import UserError
from sgpipe.utils import console


def parse(
    parser: Annotated[
        Literal["rules", "learned", "seq2seq", "llm"], declare.option("Parser.")
    ] = "rules",
    model: Annotated[
        str | None, declare.option("spaCy's model (default: the best one), folder, hub id or name.")
    ] = None,
    endpoint: Annotated[
        str | None, declare.option("llm: URL of an OpenAI chat API. Key: OPENAI_API_KEY.")
    ] = None,
) -> None:
    """Turn captions into triplets.

    Reads one caption per line from standard input, prints one line of JSON for each.

    Examples:
      sgpipe parse < captions.txt
      sgpipe parse --parser learned < captions.txt
    """
    from sgpipe.recipe import ParseConfig
    from sgpipe.stages.parse.stage import CaptionParser, parse_lines

    if sys.stdin is None:
        raise UserError("standard input is closed; `parse` reads one caption per line from it")
    captions = CaptionParser(ParseConfig(parser=parser, model=model, endpoint=endpoint))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for result in parse_lines(sys.stdin, captions):
        print(console.json_text(result))
