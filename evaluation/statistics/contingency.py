"""Whether truth and prediction fill the bins of a score alike (paper, "Chi-squared contingency test").

The table has a row for the truth and one for the prediction, and a column a bin. Bins that neither fills are left out:
only so do the paper's own pairs of chi-squared and p value (Table 3) fit together. The test compares distributions,
not cases: a high p value does not show that the predictions are right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from evaluation.statistics.estimates import NotDefined, Values, too_few
from pipeline.severity import lobe_score

PERCENT_BINS: Final = ("0-1 %", "1-25 %", "25-50 %", "50-75 %", "75-100 %")
"""Of PO and PHO; as everywhere, 1 % belongs to the second bin, and 25, 50 and 75 % to the lower one."""

SCORE_BINS: Final = tuple(str(score) for score in range(21))
"""Of LSS and LHOS: each value from 0 to 20."""

SMALL_EXPECTED: Final = 5.0
"""Below this the chi-squared distribution is a rough guide to the p value (Cochran's rule)."""


@dataclass(frozen=True)
class Contingency:
    """The test, with the table that it is about.

    Attributes:
        bins: those that hold a case.
        least_expected: the smallest expected count of a cell.
    """

    bins: tuple[str, ...]
    truth_counts: tuple[int, ...]
    predicted_counts: tuple[int, ...]
    chi2: float
    p_value: float
    degrees_of_freedom: int
    least_expected: float

    @property
    def is_rough(self) -> bool:
        """Whether some expected counts are so small that the p value is approximate."""
        return self.least_expected < SMALL_EXPECTED


def percent_bins(percents: Values) -> list[int]:
    """Which of `PERCENT_BINS` each percentage falls into."""
    return [lobe_score(float(value)) for value in percents]


def score_bins(scores: Values) -> list[int]:
    """Which of `SCORE_BINS` each score is."""
    return [int(value) for value in scores]


def compare_frequencies(
    truth: Sequence[int], predicted: Sequence[int], bins: Sequence[str]
) -> Contingency | NotDefined:
    """The chi-squared contingency test of two lists of bin numbers, without continuity correction."""
    if (why := too_few(len(truth), 1)) is not None:
        return why
    table = np.stack([np.bincount(side, minlength=len(bins)) for side in (truth, predicted)])
    filled = [int(index) for index in np.flatnonzero(table.sum(axis=0))]
    if len(filled) < 2:
        return NotDefined(
            f"truth and prediction are {bins[filled[0]]} in every case: there is one bin, nothing to test"
        )
    table = table[:, filled]
    result = stats.chi2_contingency(table, correction=False)
    return Contingency(
        bins=tuple(bins[index] for index in filled),
        truth_counts=tuple(int(count) for count in table[0]),
        predicted_counts=tuple(int(count) for count in table[1]),
        chi2=float(result.statistic),
        p_value=float(result.pvalue),
        degrees_of_freedom=int(result.dof),
        least_expected=float(result.expected_freq.min()),
    )
