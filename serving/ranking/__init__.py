"""Rank the items of a release: items in memory, candidates, scores with reasons."""
