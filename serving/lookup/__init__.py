"""Read users from the online store, with a time limit and the last good row as a fallback."""
