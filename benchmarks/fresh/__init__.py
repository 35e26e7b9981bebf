"""What the day of fresh features costs."""
