"""Online: one release, one feature lookup, scores with reasons."""
