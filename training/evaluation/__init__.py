"""How good scores are: ranks and metrics, sampled negatives, systems that need no training."""
