"""What fresh features are worth, and what they cost: takers of the last days, votes of recent similar moments."""
