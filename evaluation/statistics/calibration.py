"""What a linear recalibration would bring: the paper's own regression, judged on cases that it was not fitted to.

The paper finds a slope of 0.84 for PO and says that "the system needs to be calibrated further". Every case is
recalibrated by the line through all the others (leave one out), so that what is shown is what a new case may expect.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.statistics.errors import mean_absolute_error, mean_error
from evaluation.statistics.estimates import Estimate, Interval, NotDefined, Values, too_few, unfit_for_association
from evaluation.statistics.regression import LinearFit, fit_line
from evaluation.statistics.resampling import bootstrap

FEWEST_FOR_CALIBRATION: Final = 10
"""A line through fewer cases says more about them than about the next one."""

PERCENT: Final = (0.0, 100.0)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Recalibration and what it does to cases that it has not seen.

    Attributes:
        fit: the line through all cases, to be applied to new ones: `intercept + slope * predicted`, kept in 0-100.
        recalibrated: each case by the line through the others.
        error_before: mean absolute error as predicted.
        error_after: mean absolute error of `recalibrated`.
        gain: how much the mean absolute error falls, with its bootstrap interval.
    """

    fit: LinearFit
    recalibrated: Values
    error_before: float
    error_after: float
    bias_before: float
    bias_after: float
    gain: Estimate

    @property
    def is_worth_it(self) -> bool:
        """Whether the gain is surely above zero."""
        return isinstance(self.gain.interval, Interval) and self.gain.interval.low > 0


def calibrate(truth: Values, predicted: Values, *, seed: int) -> Calibration | NotDefined:
    """Fit the line, and judge it leaving one case out at a time."""
    why = too_few(len(truth), FEWEST_FOR_CALIBRATION) or unfit_for_association(truth, predicted)
    if why is not None:
        return why
    fit, recalibrated = fit_line(truth, predicted), _leave_one_out(truth, predicted)
    if isinstance(fit, NotDefined) or isinstance(recalibrated, NotDefined):
        return NotDefined("a single case carries all the variation: without it there is no line")
    gains = np.abs(predicted - truth) - np.abs(recalibrated - truth)
    return Calibration(
        fit=fit,
        recalibrated=recalibrated,
        error_before=mean_absolute_error(truth, predicted),
        error_after=mean_absolute_error(truth, recalibrated),
        bias_before=mean_error(truth, predicted),
        bias_after=mean_error(truth, recalibrated),
        gain=Estimate(float(np.mean(gains)), bootstrap(lambda values: float(np.mean(values)), gains, seed=seed)),
    )


def _leave_one_out(truth: Values, predicted: Values) -> Values | NotDefined:
    recalibrated = np.empty_like(predicted)
    for index in range(len(truth)):
        others = np.arange(len(truth)) != index
        fit = fit_line(truth[others], predicted[others])
        if isinstance(fit, NotDefined):
            return fit
        recalibrated[index : index + 1] = np.clip(fit.at(predicted[index : index + 1]), *PERCENT)
    return recalibrated
