"""What fresh features are worth: takers of the last days, and votes of recent similar moments."""
