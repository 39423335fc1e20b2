"""Ranges of numbers, declared beside the setting that they bound: `lr: Annotated[float, Range(above=0)]`.

The engine checks them before it builds anything; the classes themselves may be called with any number.
"""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Range:
    """Bounds of a number. None: no such bound."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    hint: str = ""
    """What a person may have meant, e.g. "0 means no limit"; it ends the message."""

    def problem(self, value: float) -> str | None:
        """Why `value` lies outside, in words that follow it ("is not above 0"); None if it lies inside."""
        outside = None
        if self.above is not None and not value > self.above:
            outside = f"is not above {self.above}"
        elif self.at_least is not None and not value >= self.at_least:
            outside = f"is less than {self.at_least}"
        elif self.below is not None and not value < self.below:
            outside = f"is not below {self.below}"
        elif self.at_most is not None and not value <= self.at_most:
            outside = f"is more than {self.at_most}"
        if outside and self.hint:
            return f"{outside} ({self.hint})"
        return outside


Count = Annotated[int, Range(at_least=1)]
CountOrNone = Annotated[int, Range(at_least=0, hint="0 means none")]
Patience = Annotated[int, Range(at_least=0, hint="0 means never")]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Limit = Annotated[float, Range(at_least=0, hint="0 means no limit")]
Decay = Annotated[float, Range(at_least=0, below=1)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
