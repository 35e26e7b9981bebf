"""Ports to the language model and the encoder, each in process or over HTTP."""
