"""The card that lies beside a saved network and that the Hugging Face hub shows."""

from __future__ import annotations

from rlip_model.config import RLIPConfig

_CARD = """\
---
library_name: transformers
pipeline_tag: object-detection
tags: [rlipv2, scene-graph-generation, human-object-interaction, {model_type}]
---

# {title}

A network of RLIPv2 (Yuan et al., ICCV 2023): {parameters:,} parameters, backbone {backbone}, {queries} queries.
{use}

```python
from rlip_model import {name}

model = {name}.from_pretrained("FOLDER_OR_ID")
```

The package `rlip_model` comes with sgpipe; importing it makes `AutoModel` know this network. Nothing is to be compiled.

## How good it is

Not measured here. Say so, with the data it was trained on, and its licence, before you publish it.
"""
_USES = {"rlip_tagger": "It is given boxes and says how they are related: `sgpipe generate --tagger FOLDER_OR_ID`."}
_FINDS = "It finds pairs of objects and their relations: `sgpipe predict FOLDER --data SHARDS`."


def model_card(name: str, title: str, config: RLIPConfig, parameters: int) -> str:
    """Markdown with a header; `name`: of the class, `title`: what people call it."""
    return _CARD.format(
        name=name,
        title=title,
        model_type=config.model_type,
        parameters=parameters,
        backbone=config.backbone,
        queries=config.num_queries,
        use=_USES.get(config.model_type, _FINDS),
    )
