"""What the small model's descriptions are worth."""
