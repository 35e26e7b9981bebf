"""What Prometheus and the lake are told about requests."""
