"""Compare served answers with the offline features and with training's scorer."""
