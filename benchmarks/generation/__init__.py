"""What describing costs, and which failures it survives."""
