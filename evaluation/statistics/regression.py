"""The straight line from prediction to truth (paper, "Linear relationship" and Table 4)."""

from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from jaxtyping import Float64

from evaluation.statistics.estimates import CONFIDENCE, Estimate, Interval, NotDefined, Values, unfit_for_association

Positions = Float64[np.ndarray, "m"]
"""Where on the prediction's axis the line is wanted."""


@dataclass(frozen=True)
class LinearFit:
    """`truth = intercept + slope * predicted`, in the units of the metric.

    A slope below 1 means that high predictions are too high.

    Attributes:
        root_mean_square: of the truth's distance from the line; the paper's "mean squared error from the regression
            line", as a root, so that it has the metric's unit.
    """

    intercept: Estimate
    slope: Estimate
    r_squared: float
    root_mean_square: float

    def at(self, predicted: Values) -> Values:
        """The truth that the line expects."""
        return np.asarray(self.intercept.value + self.slope.value * predicted)


def fit_line(truth: Values, predicted: Values) -> LinearFit | NotDefined:
    """Ordinary least squares with t intervals."""
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    model = sm.OLS(truth, sm.add_constant(predicted)).fit()
    estimates = [
        Estimate(float(value), Interval(float(low), float(high)))
        for value, (low, high) in zip(model.params, model.conf_int(1 - CONFIDENCE), strict=True)
    ]
    root_mean_square = float(np.sqrt(np.mean(np.square(model.resid))))
    return LinearFit(estimates[0], estimates[1], float(model.rsquared), root_mean_square)


def confidence_band(truth: Values, predicted: Values, at: Positions) -> tuple[Positions, Positions] | NotDefined:
    """Lower and upper edge of the 95 % band of the line (of the mean, not of single cases) at `at`."""
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    model = sm.OLS(truth, sm.add_constant(predicted)).fit()
    frame = model.get_prediction(sm.add_constant(at, has_constant="add")).conf_int(alpha=1 - CONFIDENCE)
    return frame[:, 0], frame[:, 1]
