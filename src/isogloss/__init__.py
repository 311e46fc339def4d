"""isogloss: speech representations for languages with much audio and little else.

corpus → pretrain → adapt → transfer → measure
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isogloss.hub.load import load_encoder as load_encoder

__all__ = ["load_encoder"]
__version__ = version("isogloss")


def __getattr__(name: str) -> Any:
    # torch is imported only when something that needs it is asked for: `isogloss --help` stays fast.
    if name == "load_encoder":
        from isogloss.hub.load import load_encoder

        return load_encoder
    raise AttributeError(f"module `isogloss` has no attribute `{name}`")
