"""One online read of a user, with a time limit and the last good row."""
