"""The HTTP application: routes, limits, tokens, logs, errors, the Explorer."""
