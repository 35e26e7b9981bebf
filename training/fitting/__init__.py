"""Fitting a ranker: recipes, batches, losses, the training loop, and the calibration of the history kernel."""
