"""Pearson's coefficient and Kendall's tau (paper, Table 3)."""

from dataclasses import dataclass

from scipy import stats

from evaluation.statistics.estimates import NotDefined, Values, unfit_for_association


@dataclass(frozen=True)
class Correlation:
    """A coefficient and the p value of its being zero (two-sided)."""

    coefficient: float
    p_value: float


def pearson(truth: Values, predicted: Values) -> Correlation | NotDefined:
    """The linear association."""
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    result = stats.pearsonr(truth, predicted)
    return Correlation(float(result.statistic), float(result.pvalue))


def kendall(truth: Values, predicted: Values) -> Correlation | NotDefined:
    """The agreement of the rankings: tau-b, which allows for ties (Knight 1966, as scipy has it)."""
    if (why := unfit_for_association(truth, predicted)) is not None:
        return why
    result = stats.kendalltau(truth, predicted)
    return Correlation(float(result.statistic), float(result.pvalue))
