"""Prometheus histograms: read from the text format, counted between two readings, and their quantiles."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Buckets = Mapping[float, float]  # upper bound -> number of values up to it; the last bound is infinite


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
    """A quantile, interpolated linearly within its bucket like Prometheus' `histogram_quantile`.

    A quantile above the highest finite bound is that bound. Raises `ValueError` for an empty histogram.
    """
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        raise ValueError("an empty histogram has no quantile")
    wanted = share * buckets[bounds[-1]]
    lower, before = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (wanted - before) / max(buckets[bound] - before, 1)
        lower, before = bound, buckets[bound]
    return lower
