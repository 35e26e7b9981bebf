"""Benchmark data: read, arranged, made up."""
