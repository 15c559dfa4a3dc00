"""Measures of fit from sums that blocks have added up in float64."""

import math


def rmse(sum_of_squares: float, count: int) -> float:
    """Root of the mean squared error; not a number where there is nothing to measure."""
    return math.sqrt(sum_of_squares / count) if count else math.nan


def mae(sum_of_absolutes: float, count: int) -> float:
    """Mean absolute error; not a number where there is nothing to measure."""
    return sum_of_absolutes / count if count else math.nan
