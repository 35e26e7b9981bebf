"""How a ranker is fitted: recipes, losses, the training loop, calibration."""
