"""The HTTP server: routes, limits, tokens, logs, errors, the Explorer."""
