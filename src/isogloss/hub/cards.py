"""The model card that goes with an exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from isogloss import __version__
from isogloss.encoders.base import Encoder
from isogloss.hub.families.base import Family

_TEMPLATE = """---
library_name: transformers
pipeline_tag: feature-extraction
tags:
- speech
- self-supervised
- isogloss
---

# {title}

A speech encoder with {millions:.1f} million parameters: {hop_ms:.0f} ms from frame to frame, {num_layers} layers, width {width}.
`{model_class}` of transformers; written by isogloss {version}.

## Use

```python
{use}
```

{padding}

## Training

{training}
"""


def model_card(
    encoder: Encoder,
    family: Family,
    title: str,
    objective_tree: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """Return the README of an exported encoder, in Markdown with the hub's header; it states only what is known."""
    lines = []
    if "language" in extra:
        lines.append(
            f"The part of a model for several languages that `{extra['language']}` uses; its other languages are not in it."
        )
    if objective_tree is not None:
        lines.append(f"Objective: `{objective_tree.get('name')}`.")
    if "step" in extra:
        lines.append(f"Updates: {extra['step']}.")
    if "config" in extra:
        recipe = json.dumps(extra["config"], indent=1, ensure_ascii=False, sort_keys=True)
        lines.append(f"The whole configuration of the run:\n\n```json\n{recipe}\n```")
    return _TEMPLATE.format(
        title=title,
        millions=sum(parameter.numel() for parameter in encoder.parameters()) / 1e6,
        hop_ms=1000 * encoder.geometry.hop / encoder.sample_rate,
        num_layers=encoder.num_layers,
        width=encoder.width,
        model_class=family.model_class,
        version=__version__,
        use=family.use,
        padding="\n\n".join([family.padding_note(encoder.config), *notes]).strip(),
        training="\n\n".join(lines) or "Not recorded.",
    )
