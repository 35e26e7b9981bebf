"""The language model and the encoder, each in this process or behind an HTTP server."""
