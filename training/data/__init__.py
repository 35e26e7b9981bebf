"""What models learn from: the training set in memory, counts over its sequences, nearest vectors."""
