"""Latency, load, release switches and soak of the service."""
