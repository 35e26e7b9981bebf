"""From a request to an answer: recommendations, profiles, search."""
