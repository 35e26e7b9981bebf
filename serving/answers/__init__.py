"""Answer requests: recommendations, profiles of items and users, search."""
