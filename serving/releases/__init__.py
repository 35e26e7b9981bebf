"""Build a release, put it in force, roll it back; the file of a running experiment."""
