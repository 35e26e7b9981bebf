"""Ranking quality of every system on one data set."""
