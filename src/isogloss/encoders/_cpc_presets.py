"""The published sizes of CPC, and a small one of ours."""

from __future__ import annotations

from isogloss.encoders.cpc import CpcConfig

PRESETS: dict[str, CpcConfig] = {
    "cpc": CpcConfig(channels=512, norm="none", recurrent="gru"),  # arXiv 1807.03748, §3.1
    "modified-cpc": CpcConfig(),  # arXiv 2002.02848
    # Ours: seconds on two cores.
    "cpc-tiny": CpcConfig(channels=32, width=32),
}
