"""Commands for people: forecast, dead letters, fetch."""
