"""Numbers that settings hold, with the bounds that are checked when they are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0)]  # of a term in a sum; 0 leaves it out
Share = Annotated[float, Field(ge=0.0, le=1.0)]  # of a whole, such as a run; also how much of an average stays
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]  # of what must not happen always, such as dropout
