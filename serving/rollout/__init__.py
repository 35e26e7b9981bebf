"""Load new releases as they are put in force, and split users between two releases in an experiment."""
