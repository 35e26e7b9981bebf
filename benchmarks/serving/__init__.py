"""Latency of the service, and its behaviour under load, release switches and failing stores."""
