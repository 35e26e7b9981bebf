"""Histograms of Prometheus: read from its text format, counted between two moments, and their quantiles."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Buckets = Mapping[float, float]  # upper bound -> how many were at most that; the last bound is infinite


def bucket_counts(text: str, metric: str, label: str) -> Mapping[str, Buckets]:
    """The cumulative buckets of a histogram in Prometheus' text format: label value -> upper bound -> count."""
    found: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{metric}_bucket":
                bounds = found.setdefault(sample.labels[label], {})
                bounds[float(sample.labels["le"])] = sample.value
    return found


def since(before: Buckets, now: Buckets) -> Buckets:
    """What was counted between two readings."""
    return {bound: count - before.get(bound, 0.0) for bound, count in now.items()}


def quantile(buckets: Buckets, share: float) -> float:
    """A quantile of a histogram, linear within its bucket, as Prometheus' `histogram_quantile` has it.

    The highest finite bound for what lies above it. Raises `ValueError` for a histogram of nothing.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        raise ValueError("a histogram of nothing has no quantile")
    wanted = share * buckets[bounds[-1]]
    lower, before = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - before) / max(buckets[bound] - before, 1)
        lower, before = bound, buckets[bound]
    return lower
