"""Evaluation of scores: ranks, metrics, sampled negatives, and baselines without training."""
