"""The vocabulary every part of the system shares: settings, tables, versions, stages, the release manifest."""
