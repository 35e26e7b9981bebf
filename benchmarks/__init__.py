"""Measurements: one file asks one question and writes one report."""
