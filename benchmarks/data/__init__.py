"""Benchmark data: readers, vectors of texts, and training sets."""
