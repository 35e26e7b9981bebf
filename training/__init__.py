"""The ranker: training set, model, training loop, evaluation and the promotion gate."""
