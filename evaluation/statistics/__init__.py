"""Agreement of predicted with true scores: pure functions of two arrays, from scipy and statsmodels.

contingency     chi-squared test of the frequencies (paper, "Statistical Analysis")
correlation     Pearson and Kendall (paper, Table 3)
regression      truth = intercept + slope x prediction (paper, Table 4)
errors          mean error, mean absolute error
limits          Bland-Altman
confusion       ordinal scores side by side, weighted kappa
calibration     what the regression would mend, cross-validated
resampling      bootstrap intervals

What the data do not define comes back as `NotDefined`, with why; no function returns a NaN.
"""
