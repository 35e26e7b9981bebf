"""Online serving: recommendations with reasons over HTTP, releases and experiments."""
