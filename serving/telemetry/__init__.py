"""Record requests: metrics for Prometheus, and a log of served requests in the lake."""
