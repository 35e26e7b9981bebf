"""Served answers replayed against the offline side."""
