"""What people type: forecast, dead letters, fetch."""
