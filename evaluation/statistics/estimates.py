"""What a statistic can be: a number, a number with its interval, or not defined."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

Values = Float64[np.ndarray, "n"]
"""One number a case; truth and prediction of the same call have the same cases in the same order."""

CONFIDENCE: Final = 0.95
"""Of every interval in the report."""

SAME: Final = 1e-9
"""Values that differ by no more than this differ by rounding."""

FEWEST_CASES: Final = 3
"""With two cases every correlation is 1 or -1, and every line fits."""


@dataclass(frozen=True)
class NotDefined:
    """A statistic that these data do not have, and why."""

    why: str


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    interval: Interval | NotDefined


def too_few(count: int, fewest: int = FEWEST_CASES) -> NotDefined | None:
    """Why nothing can be said about so few cases; None if they are enough."""
    if count >= fewest:
        return None
    return NotDefined(f"{count} case{'' if count == 1 else 's'}; at least {fewest} are needed")


def not_varying(name: str, values: Values) -> NotDefined | None:
    """Why nothing can be said about values that are all the same; None if they vary."""
    if np.ptp(values) > SAME:
        return None
    return NotDefined(f"the {name} is {round(float(values[0]), 6):g} in every case")


def unfit_for_association(truth: Values, predicted: Values) -> NotDefined | None:
    """Why no association can be measured: too few cases, or one side does not vary."""
    return too_few(len(truth)) or not_varying("truth", truth) or not_varying("prediction", predicted)
