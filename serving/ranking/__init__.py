"""A release in memory: items, candidates, scores with reasons."""
