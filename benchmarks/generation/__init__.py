"""What describing costs and survives."""
