"""Sparse counts of items that users take together or one after the other.

The caller chooses the sequences: `training_set.known_sequences` gives those that are known before a split.

Shape suffixes:  U users  N items; item i is in row or column i - 1
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, diags


def user_item_matrix(sequences: Sequence[np.ndarray], num_items: int) -> csr_matrix:
    """(U, N): 1 for each item of a user, repeats counted once."""
    user = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences])
    matrix_UN = _counts(user, _flat(sequences) - 1, (len(sequences), num_items))
    matrix_UN.data[:] = 1
    return matrix_UN


def item_counts(sequences: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """Interactions of each item, repeats included: (N,)."""
    return np.bincount(_flat(sequences), minlength=num_items + 1)[1:]


def cooccurrence(matrix_UN: csr_matrix) -> csr_matrix:
    """Number of users who have both items: (N, N), symmetric, zeros on the diagonal."""
    both_NN = (matrix_UN.T @ matrix_UN).tocsr()
    both_NN.setdiag(0)
    both_NN.eliminate_zeros()
    return both_NN


def cosine(both_NN: csr_matrix, num_N: np.ndarray) -> csr_matrix:
    """Co-occurrence divided by item counts: both / sqrt(num_i * num_j), (N, N).

    `num_N` counts each item's users, or its interactions if repeats should count. Counts below 1 are taken as 1.
    """
    scale_NN = diags(1 / np.sqrt(np.maximum(num_N, 1)))
    return (scale_NN @ both_NN @ scale_NN).tocsr()


def item_cosine(sequences: Sequence[np.ndarray], num_items: int) -> csr_matrix:
    """|users of both| / sqrt(|users of i| * |users of j|) with zeros on the diagonal, (N, N)."""
    matrix_UN = user_item_matrix(sequences, num_items)
    return cosine(cooccurrence(matrix_UN), np.asarray(matrix_UN.sum(0)).ravel())


def transitions(sequences: Sequence[np.ndarray], num_items: int, steps: int = 1) -> csr_matrix:
    """How often item x came exactly `steps` items after item a: (N, N), row a, column x."""
    before = _flat([items[:-steps] for items in sequences])
    after = _flat([items[steps:] for items in sequences])
    return _counts(before - 1, after - 1, (num_items, num_items))


def _flat(sequences: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *sequences])


def _counts(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    return csr_matrix((np.ones(len(row)), (row, column)), shape=shape)  # adds up repeated entries
