"""The model card that goes with an exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from isogloss import __version__
from isogloss.encoders.wave import WaveEncoder

_TEMPLATE = """---
library_name: transformers
pipeline_tag: feature-extraction
tags:
- speech
- self-supervised
- isogloss
---

# {title}

A speech encoder with {millions:.1f} million parameters: {num_convs} convolutions ({hop_ms:.0f} ms from frame to frame), then a
transformer of {num_layers} layers, width {width}, {num_heads} heads. Written by isogloss {version}.

## Use

```python
from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("FOLDER").eval()
extractor = AutoFeatureExtractor.from_pretrained("FOLDER")
inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")  # mono, 16 kHz
states = model(**inputs, output_hidden_states=True).hidden_states
```

{padding}

## Training

{training}
"""

_GROUP = """This model's first convolution has a group norm, whose statistics run over time. transformers computes them over the
padding too, so encode one recording at a time there; isogloss itself gives the same result in batches of any lengths."""
_LAYER = "Give each whole recording at zero mean and unit variance; the feature extractor does so."


def model_card(
    encoder: WaveEncoder, title: str, objective_tree: Mapping[str, Any] | None, extra: Mapping[str, Any]
) -> str:
    """Return the README of an exported encoder, in Markdown with the hub's header; it states only what is known."""
    config = encoder.config
    lines = []
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
        num_convs=len(config.conv_channels),
        hop_ms=1000 * encoder.geometry.hop / encoder.sample_rate,
        num_layers=config.num_layers,
        width=config.width,
        num_heads=config.num_heads,
        version=__version__,
        padding=_GROUP if config.conv_norm == "group" else _LAYER,
        training="\n\n".join(lines) or "Not recorded.",
    )
