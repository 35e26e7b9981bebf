"""Batch jobs. Each file here is one job and fills one kind of table; the folders hold their parts."""
