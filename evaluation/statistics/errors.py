"""How far the predictions are from the truth, on average."""

import numpy as np

from evaluation.statistics.estimates import Values


def mean_error(truth: Values, predicted: Values) -> float:
    """Prediction less truth: positive where the predictions are too high."""
    return float(np.mean(predicted - truth))


def mean_absolute_error(truth: Values, predicted: Values) -> float:
    """The paper's "mean error between ground truth and predicted"."""
    return float(np.mean(np.abs(predicted - truth)))
