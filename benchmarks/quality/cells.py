"""Cells of a quality table: a system's mean over seeds, a comparison with its interval."""

import numpy as np

from benchmarks.quality.comparison import OVERALL, Comparison, System


def cell(one: System, protocol: str, metric: str, group: str = OVERALL) -> str:
    """Mean over seeds with their standard deviation where there are several."""
    mean, deviation = one.mean(protocol, metric, group), one.deviation(protocol, metric, group)
    if np.isnan(mean):
        return "–"
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


def difference(found: Comparison) -> str:
    return f"{found.difference.mean:+.4f} [{found.difference.low:+.4f}, {found.difference.high:+.4f}]"


def ratio(found: Comparison) -> str:
    return f"{found.ratio.mean:.3f} [{found.ratio.low:.3f}, {found.ratio.high:.3f}]"
