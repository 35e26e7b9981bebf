"""Whether a small language model's descriptions serve better than facts; settled, only the report is left."""
