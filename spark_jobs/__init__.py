"""Batch jobs: one file is one job and fills one kind of table."""
