"""Recent similar moments: what a moment is, how alike two of them are, and how they vote for the next item.

A *moment* is what a user had taken before an interaction, with the item taken next. Spark finds the moments of every
day, training computes the same ones, serving makes one of a request's recent items: all of them use this file.

    text(m)           = unit(sum over the last items, newest first, of 0.8^j * (vector of item j - mean of all items))
    bag(m)            = unit(sum of 0.8^j * (unit vector of item j's id))
    similarity(m, n)  = text_share * text(m) . text(n) + (1 - text_share) * bag(m) . bag(n)
    vote(m, n)        = exp(sharpness * (similarity(m, n) - 1)), of moment n for its next item

Of the nearest moments those of *other* users vote. The weight of an item is its share of all votes. Nobody votes for a
moment without a known item: it is like no other.

A trained ranker also compares moments by what it makes of them, its own state after their items:

    state_similarity(m, n)  = unit(state after the items of m) . unit(state after the items of n) - .004 * days since n
    vote(m, n)              = exp(15 * (state_similarity(m, n) - 1))

Here the weight of an item is the sum of its votes. A share would not tell whether the voting moments are near.

Shape suffixes:  Q asking moments  M voting moments  H items of a history  S semantic size  D width of a state
                 N items, row 0 of vectors is no item  V nearest moments  P proposed moments  K places of ids
"""

# ruff: noqa: N802, N803, N815 - the shape suffixes above

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from grasp.settings import Settings
from grasp.tables import MAX_NEIGHBOUR_ITEMS

HISTORY_LENGTH, HISTORY_DECAY = 8, 0.8  # last items of a moment, and the weight of each relative to the next newer one
NUM_NEAREST = 500  # moments that vote, at most; those of the asking user are among them and have no vote
WEIGHT_DIGITS = 6  # so that the order of additions changes no weight
SIMILARITY_DIGITS = 5  # more are noise of float32; of moments that are equal so far, the later vote
# Moments compared by state: how much each day of age takes from the similarity, and the sharpness of votes, both chosen
# on validation (docs/decisions/fresh-features.md).
STATE_AGE_COST, STATE_SHARPNESS = 0.004, 15.0
MAX_STATES = 500_000  # moments that are compared by state, the latest ones; serving holds them in memory
NUM_SAMPLED = 1024  # similarities from which the number of near moments is guessed
BLOCK_NUMBERS = 8_000_000  # similarities computed at once
NUM_ID_PLACES = 128  # of a dense vector, into which the ids of a bag are hashed


@dataclass(frozen=True)
class VoteRule:
    """How moments vote (the settings `GRASP_MOMENT_*`)."""

    sharpness: float = 20.0
    text_share: float = 0.7
    min_voters: int = 3  # users who must vote for an item, so that it reveals none of them

    @classmethod
    def of(cls, settings: Settings) -> "VoteRule":
        return cls(settings.moment_sharpness, settings.moment_text_share, settings.moment_min_voters)


@dataclass(frozen=True, eq=False)
class Contexts:
    """What the similarity of moments compares. A moment without a known item is like no other."""

    text_QS: np.ndarray  # float32, unit rows or zeros
    bag_QN: sparse.csr_matrix  # unit rows or zeros

    def __len__(self) -> int:
        return len(self.text_QS)

    @property
    def is_known_Q(self) -> np.ndarray:
        """Whether a moment has a known item."""
        return np.diff(self.bag_QN.indptr) > 0

    @cached_property
    def bag_NQ(self) -> sparse.csr_matrix:
        """The bags by item: a search reads those of its own items alone. Made at the first search."""
        return self.bag_QN.T.tocsr()

    def rows(self, chosen: np.ndarray | slice) -> "Contexts":
        return Contexts(self.text_QS[chosen], self.bag_QN[chosen])


@dataclass(frozen=True, eq=False)
class Votes:
    """The items that one moment's neighbours vote for, and their weights, the largest first."""

    items: np.ndarray  # rows of the item vectors
    weights: np.ndarray  # float32; shares of all votes, or sums of votes where moments are compared by state


NO_VOTES = Votes(np.zeros(0, np.int64), np.zeros(0, np.float32))


def centred(vectors_NS: np.ndarray) -> np.ndarray:
    """Item vectors without their mean, with a row of zeros for no item before them: (N + 1, S)."""
    centred_NS = vectors_NS - vectors_NS.mean(0, dtype=np.float64).astype(np.float32)
    return np.concatenate([np.zeros((1, vectors_NS.shape[1]), np.float32), centred_NS])


def contexts(history_QH: np.ndarray, centred_NS: np.ndarray) -> Contexts:
    """The contexts of histories, newest item first; 0 for none. `centred_NS` is as `centred` gives it."""
    num, length = history_QH.shape
    weight_QH = (HISTORY_DECAY ** np.arange(length) * (history_QH > 0)).astype(np.float32)
    bag_QN = sparse.csr_matrix(
        (weight_QH.ravel(), history_QH.ravel(), np.arange(num + 1) * length), shape=(num, len(centred_NS))
    )
    bag_QN.sum_duplicates()
    bag_QN.eliminate_zeros()
    text_QS = np.asarray(bag_QN @ centred_NS, np.float32)
    length_Q = np.sqrt(np.asarray(bag_QN.multiply(bag_QN).sum(1)).ravel())
    scale_QQ = sparse.diags(1 / np.where(length_Q > 0, length_Q, 1)).astype(np.float32)
    return Contexts(_unit(text_QS), (scale_QQ @ bag_QN).tocsr())


def _unit(rows: np.ndarray) -> np.ndarray:
    """Each row scaled to length 1; a row of zeros stays."""
    norm = np.linalg.norm(rows, axis=1)
    return rows / np.where(norm > 0, norm, 1)[:, None]


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments that may vote, oldest first."""

    contexts: Contexts
    user_M: np.ndarray  # a number for each user
    item_M: np.ndarray  # the item taken next, a row of the item vectors

    def __len__(self) -> int:
        return len(self.user_M)

    def votes(self, asking: Contexts, user_Q: np.ndarray, rule: VoteRule) -> Iterator[Votes]:
        """The votes for each asking moment, in order; `user_Q` is its user, -1 for nobody's. Compares all moments."""
        is_known_Q = asking.is_known_Q
        step = max(1, BLOCK_NUMBERS // max(len(self), 1))
        for start in range(0, len(asking), step):
            block = slice(start, start + step)
            similarity_QM = similarity(asking.rows(block), self.contexts, rule.text_share)
            for is_known, user, similarity_M in zip(is_known_Q[block], user_Q[block], similarity_QM, strict=True):
                near_V = nearest(similarity_M)
                yield self.count(near_V, similarity_M[near_V], user, rule) if is_known else NO_VOTES

    def votes_of_proposed(
        self, asking: Contexts, user_Q: np.ndarray, proposed_QP: np.ndarray, rule: VoteRule
    ) -> Iterator[Votes]:
        """Like `votes`, but compares only the moments that an index proposes for each asking moment; -1 is none.

        Each moment is proposed at most once.
        """
        is_known_Q = asking.is_known_Q
        for row, (user, proposed_P) in enumerate(zip(user_Q, proposed_QP, strict=True)):
            if not is_known_Q[row]:
                yield NO_VOTES
                continue
            own = slice(row, row + 1)
            chosen_V = np.sort(proposed_P[proposed_P >= 0])
            similarity_V = similarity(asking.rows(own), self.contexts.rows(chosen_V), rule.text_share)[0]
            near_V = nearest(similarity_V)
            yield self.count(chosen_V[near_V], similarity_V[near_V], user, rule)

    def count(self, chosen_V: np.ndarray, similarity_V: np.ndarray, user: int, rule: VoteRule) -> Votes:
        """Count the votes of some moments; those of `user` have none."""
        vote_V = np.exp(rule.sharpness * (similarity_V.astype(np.float64) - 1))
        others_V = self.user_M[chosen_V] != user
        share_V = vote_V / max(vote_V[others_V].sum(), np.finfo(np.float64).tiny)
        return count_votes(self.user_M[chosen_V], self.item_M[chosen_V], share_V, user, rule.min_voters)


@dataclass(frozen=True, eq=False)
class StateMoments:
    """Moments that may vote, oldest first, with the state of a ranker after their items."""

    state_MD: np.ndarray  # float32, as `unit_states` gives them
    age_M: np.ndarray  # in days
    user_M: np.ndarray  # a number for each user
    item_M: np.ndarray  # the item taken next, a row of the item vectors

    def __len__(self) -> int:
        return len(self.user_M)

    def votes(self, state_QD: np.ndarray, user_Q: np.ndarray, min_voters: int) -> Iterator[Votes]:
        """The votes for each asking state, in order; `user_Q` is its user, -1 for nobody's. Compares all moments."""
        if not len(self):
            yield from [NO_VOTES] * len(state_QD)
            return
        step = max(1, BLOCK_NUMBERS // len(self))
        for start in range(0, len(state_QD), step):
            block = slice(start, start + step)
            for user, similarity_M in zip(user_Q[block], self.similarity(state_QD[block]), strict=True):
                near_V = nearest(similarity_M)
                yield self.count(near_V, similarity_M[near_V], user, min_voters)

    def similarity(self, state_QD: np.ndarray) -> np.ndarray:
        """The similarity of every asking state to every moment, less the cost of its age, (Q, M)."""
        similarity_QM: np.ndarray = state_QD @ self.state_MD.T
        similarity_QM -= STATE_AGE_COST * self.age_M.astype(np.float32)
        return similarity_QM

    def count(self, chosen_V: np.ndarray, similarity_V: np.ndarray, user: int, min_voters: int) -> Votes:
        """Count the votes of some moments; those of `user` have none."""
        return state_votes(self.user_M[chosen_V], self.item_M[chosen_V], similarity_V, user, min_voters)


def unit_states(state_QD: np.ndarray) -> np.ndarray:
    """States scaled to length 1 in half precision, as moments keep them; float32, so that products are exact enough."""
    return _unit(state_QD).astype(np.float16).astype(np.float32)


def state_votes(user_V: np.ndarray, item_V: np.ndarray, similarity_V: np.ndarray, user: int, min_voters: int) -> Votes:
    """What moments vote for whose state is so similar, age included; those of `user` have no vote."""
    vote_V = np.exp(STATE_SHARPNESS * (similarity_V.astype(np.float64) - 1))
    return count_votes(user_V, item_V, vote_V, user, min_voters)


def count_votes(user_V: np.ndarray, item_V: np.ndarray, vote_V: np.ndarray, user: int, min_voters: int) -> Votes:
    """What other users than `user` vote for: items with enough voters, the `MAX_NEIGHBOUR_ITEMS` of most weight."""
    is_other_V = user_V != user
    user_V, item_V, vote_V = user_V[is_other_V], item_V[is_other_V], vote_V[is_other_V]
    order = np.argsort(item_V * (user_V.max(initial=0) + 1) + user_V, kind="stable")  # by item, then by user
    user_V, item_V, vote_V = user_V[order], item_V[order], vote_V[order]
    is_first_V, is_voter_V = np.ones((2, len(order)), bool)  # of the votes for its item; of its user's for it
    is_first_V[1:] = item_V[1:] != item_V[:-1]
    is_voter_V[1:] = is_first_V[1:] | (user_V[1:] != user_V[:-1])
    items, place_V = item_V[is_first_V], np.cumsum(is_first_V) - 1
    weights = np.round(np.bincount(place_V, vote_V), WEIGHT_DIGITS)
    num_voters = np.bincount(place_V, is_voter_V)
    kept = np.flatnonzero((num_voters >= min_voters) & (items > 0) & (weights > 0))
    kept = kept[np.lexsort((items[kept], -weights[kept]))][:MAX_NEIGHBOUR_ITEMS]
    return Votes(items[kept], weights[kept].astype(np.float32))


def similarity(asking: Contexts, known: Contexts, text_share: float) -> np.ndarray:
    """The similarity of every asking moment to every known one, (Q, M)."""
    of_text_QM = asking.text_QS @ known.text_QS.T
    of_text_QM *= text_share
    if text_share < 1:
        of_ids_QM = (asking.bag_QN @ known.bag_NQ).tocoo()
        of_text_QM[of_ids_QM.row, of_ids_QM.col] += (1 - text_share) * of_ids_QM.data
    return of_text_QM


def nearest(similarity_M: np.ndarray, num: int = NUM_NEAREST) -> np.ndarray:
    """The places of the `num` nearest moments at most, ascending; of equally near ones the later."""
    likely = _likely(similarity_M, num)
    rounded = np.rint(similarity_M[likely] * 10**SIMILARITY_DIGITS).astype(np.int64)
    order = rounded * len(similarity_M) + likely  # one number for both: sorting by two takes three times as long
    best = np.partition(order, -num)[-num:] if num < len(order) else order
    chosen: np.ndarray = np.sort(best % max(len(similarity_M), 1))
    return chosen


def _likely(similarity_M: np.ndarray, num: int) -> np.ndarray:
    """Places among which the nearest are, few of many: sorting all would take longer than comparing them."""
    every = len(similarity_M) // NUM_SAMPLED
    if every < 2:
        return np.arange(len(similarity_M))
    sample = similarity_M[::every]
    rank = min(len(sample), 2 * num // every + 10)  # of the sample; about twice as many moments as are needed
    least = np.partition(sample, len(sample) - rank)[len(sample) - rank]
    margin = 2 * 10.0**-SIMILARITY_DIGITS  # so that what rounds to the same number is found together
    found = np.flatnonzero(similarity_M >= least - margin)
    if np.count_nonzero(similarity_M[found] >= least) < num:
        return np.arange(len(similarity_M))
    return found


def hashed_ids(item_ids: Sequence[str]) -> sparse.csr_matrix:
    """Where an index keeps each id: plus or minus one at one of `NUM_ID_PLACES` places, (N + 1, NUM_ID_PLACES).

    It follows from the id alone, so it is the same on every day. Row 0 is no item.
    """
    digests = [hashlib.blake2b(each.encode(), digest_size=8).digest() for each in item_ids]
    number_N = np.array([int.from_bytes(each) for each in digests], np.uint64)
    sign_N = np.where(number_N >> np.uint64(63), 1, -1).astype(np.float32)
    place_N = (number_N % np.uint64(NUM_ID_PLACES)).astype(np.int64)
    return sparse.csr_matrix(
        (sign_N, place_N, np.concatenate([[0], np.arange(len(item_ids) + 1)])), shape=(len(item_ids) + 1, NUM_ID_PLACES)
    )


def dense_vectors(of: Contexts, hashed_NK: sparse.csr_matrix, text_share: float) -> np.ndarray:
    """Moments as an index keeps them, (Q, S + NUM_ID_PLACES): their inner product is about the similarity.

    Each is [sqrt(text_share) * text, sqrt(1 - text_share) * bag], the ids of the bag hashed by `hashed_ids`. All have
    length 1, but a moment without a known item has zeros.
    """
    bag_QK = np.asarray((of.bag_QN @ hashed_NK).toarray(), np.float32)
    parts = [np.sqrt(text_share) * of.text_QS, np.sqrt(1 - text_share) * _unit(bag_QK)]
    return _unit(np.concatenate(parts, axis=1)).astype(np.float32)


def moment_hash(
    user_id: str, microseconds: int, row_number: int, history: Iterable[tuple[str, str]], text_share: float
) -> str:
    """The name of a moment in an index: it changes with whatever its dense vector is made of.

    `microseconds` is the time of the interaction since 1970 UTC. `history` has the id of each item, newest first, and
    the hash of its description. Only the mean of all items is left out: it moves a little every day.
    """
    steps = [part for step in history for part in step]
    parts = [user_id, str(microseconds), str(row_number), repr(text_share), *steps]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
