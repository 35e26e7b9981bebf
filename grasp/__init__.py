"""Shared by all parts: settings, tables, days, versions, partitions, stages, the release manifest."""
