"""The training set in memory, counts over its sequences, and nearest vectors."""
