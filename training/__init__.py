"""The ranker: its data set, model, training loop, evaluation and promotion gate."""
