"""What takers, votes and moments cost in serving's process. All is made up, because times depend on shapes alone.

One thread. Sides take turns request by request, so that a busy machine slows all of them; a figure is the median over
rounds of what a round's requests say.

Shape suffixes:  T sequence length  N items  W windows of `TAKER_DAYS`  M moments  H items of a history
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from grasp.moments import HISTORY_LENGTH, VoteRule
from grasp.tables import MAX_NEIGHBOUR_ITEMS, TAKER_DAYS
from serving.lookup.online_store import UserRow
from serving.ranking.candidates import Additions, Candidates
from serving.ranking.items import ItemSide
from serving.ranking.moments import MomentRows, ReleaseMoments
from serving.ranking.votes import stored_votes
from training.fitting.recipes import DEFAULT, recipe
from training.model.config import RankerConfig
from training.model.enhancers.id_embeddings import UserVectors
from training.model.history_kernel import KINDS
from training.model.inference import InferenceRanker
from training.model.ranker import Ranker

NUM_ITEMS, SEMANTIC_SIZE, LENGTH, WIDTH = 12_000, 384, 100, 64
NUM_MOMENTS, NUM_USERS = 200_000, 50_000
ROUNDS, REQUESTS, NUM_WARM_UP = 9, 200, 50


def fresh_costs(rounds: int = ROUNDS, requests: int = REQUESTS, num_moments: int = NUM_MOMENTS) -> dict[str, Any]:
    """What GRASP adds to a request of its backbone, fresh features included, and a search of moments; milliseconds."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    items = _items(random)
    added = _medians(_turns(items, random), rounds, requests, ("backbone", "added", "added_by_fresh"))
    moments = ReleaseMoments(_moments(random, num_moments), items, VoteRule())
    search = _medians(lambda: _search(moments, random), rounds, requests, ("search",))
    sizes = {"num_items": NUM_ITEMS, "width": WIDTH, "length": LENGTH, "num_moments": num_moments}
    return added | search | sizes | {"rounds": rounds, "requests": requests}


def _medians(
    turn: Callable[[], tuple[float, ...]], rounds: int, requests: int, names: tuple[str, ...]
) -> dict[str, Any]:
    """p50 and p99 of each part of a turn, medians over rounds."""
    _ = [turn() for _ in range(NUM_WARM_UP)]
    times = np.array([[turn() for _ in range(requests)] for _ in range(rounds)])
    return {
        f"{name}_p{percent}": float(np.median(np.percentile(times[..., place], percent, axis=1)))
        for place, name in enumerate(names)
        for percent in (50, 99)
    }


def _turns(items: ItemSide, random: np.random.Generator) -> Callable[[], tuple[float, float, float]]:
    """A function that times one history: the backbone, what GRASP takes beyond it, and fresh features alone."""
    backbone, grasp = (InferenceRanker(_untrained(name, items)) for name in ("sasrec", DEFAULT))
    fresh = _untrained(DEFAULT, items).fresh
    fresh.load_state_dict({name: torch.ones_like(each) for name, each in fresh.state_dict().items()})
    user, users = _user(items, random), UserVectors(torch.randn(1, SEMANTIC_SIZE), torch.randn(1, SEMANTIC_SIZE))
    plain = Candidates(grasp.candidate_ND[1:])
    with torch.inference_mode():
        takers_N = fresh.of_takers(torch.from_numpy(items.takers_WN))
    hot = Candidates(grasp.candidate_ND[1:], takers_N=takers_N)
    kernel = grasp.kernel
    assert kernel is not None

    def turn() -> tuple[float, float, float]:
        items_T = torch.from_numpy(random.integers(1, len(items.ids) + 1, LENGTH))
        marks = [time.perf_counter()]
        view_VTD = backbone.views(items_T, users)
        marks.append(time.perf_counter())
        state_D = backbone.state(view_VTD)
        marks.append(time.perf_counter())
        plain.scores(state_D)
        marks.append(time.perf_counter())
        view_VTD = grasp.views(items_T, users)
        item_L, value_L = kernel.sparse_scores(items_T)
        added = Additions(item_L - 1, value_L)
        marks.append(time.perf_counter())
        votes = stored_votes(user, items)
        with torch.inference_mode():
            value_V = fresh.of_votes(torch.from_numpy(votes.weight_V))
        added = added + Additions(torch.from_numpy(votes.row_V), value_V)
        marks.append(time.perf_counter())
        state_D = grasp.state(view_VTD)  # in turn too, so that both find the caches as a request does
        started = time.perf_counter()
        hot.scores(state_D, added)
        scored = time.perf_counter() - started
        looked_up, backbone_only, plain_scored, views, voted = np.diff(marks)
        of_fresh = voted + scored - plain_scored
        added_seconds = views - looked_up + of_fresh
        return 1000 * (looked_up + backbone_only), 1000 * added_seconds, 1000 * of_fresh

    return turn


def _search(moments: ReleaseMoments, random: np.random.Generator) -> tuple[float]:
    history = _taken(random, LENGTH).tolist()
    started = time.perf_counter()
    moments.votes("u1", history)
    return (1000 * (time.perf_counter() - started),)


def _untrained(name: str, items: ItemSide) -> Ranker:
    """A recipe's ranker before training, which costs the same; the kernel's stored neighbours are drawn."""
    chosen = recipe(name)
    torch.manual_seed(0)
    switches: dict[str, Any] = dict(chosen.ranker) | {"width": WIDTH}
    config = RankerConfig(len(items.ids), SEMANTIC_SIZE, chosen.backbone, enhancer=chosen.enhancer, **switches)
    ranker = Ranker(config).eval().requires_grad_(False)
    ranker.attach_items(torch.from_numpy(items.semantic_NS), torch.from_numpy(items.neighbour_NS))
    if ranker.kernel is not None:
        ranker.kernel.weights_K.fill_(1)
        for kind in KINDS:
            ranker.kernel.get_buffer(f"{kind}_ids_NM").random_(1, len(items.ids) + 1)
            ranker.kernel.get_buffer(f"{kind}_values_NM").uniform_()
    return ranker


def _items(random: np.random.Generator) -> ItemSide:
    ids = [f"i{row}" for row in range(NUM_ITEMS)]
    vectors = random.normal(size=(2, NUM_ITEMS, SEMANTIC_SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return ItemSide(
        ids=ids,
        titles=ids,
        neighbour_ids=[[] for _ in ids],
        popularity_N=np.arange(NUM_ITEMS)[::-1],
        semantic_NS=vectors[0],
        neighbour_NS=vectors[1],
        available_N=np.ones(NUM_ITEMS, dtype=bool),
        row_of={item_id: row for row, item_id in enumerate(ids)},
        copies_of={},
        takers_WN=np.sort(random.integers(0, 100, (len(TAKER_DAYS), NUM_ITEMS)), axis=0),
    )


def _user(items: ItemSide, random: np.random.Generator) -> UserRow:
    """A user with as many voted items as a row may hold."""
    now = datetime(2026, 1, 5, tzinfo=UTC)
    voted = random.permutation(NUM_ITEMS)[:MAX_NEIGHBOUR_ITEMS]
    return UserRow(
        user_id="u1",
        sequence=[],
        sequence_times=[],
        earlier_item_ids=[],
        semantic_embedding=items.semantic_NS[0],
        neighbour_embedding=items.neighbour_NS[0],
        neighbour_ids=[],
        neighbour_similarities=np.zeros(0, np.float32),
        description="",
        source="facts",
        is_tail=False,
        num_interactions=0,
        gap_days=0,
        neighbour_item_ids=[items.ids[row] for row in voted],
        neighbour_item_weights=np.full(len(voted), 1 / len(voted), np.float32),
        event_timestamp=now,
        computed_at=now,
    )


def _taken(random: np.random.Generator, shape: int | tuple[int, int]) -> np.ndarray:
    """Rows of items, few of which are taken often."""
    share_N = 1 / (np.arange(NUM_ITEMS) + 20)
    return random.choice(NUM_ITEMS, shape, p=share_N / share_N.sum())


def _moments(random: np.random.Generator, num: int) -> MomentRows:
    """Moments with full histories."""
    drawn = _taken(random, (num, HISTORY_LENGTH + 1)) + 1
    users = [f"u{number}" for number in range(NUM_USERS)]
    return MomentRows(
        user_M=random.integers(0, NUM_USERS, num),
        item_M=drawn[:, 0],
        history_MH=drawn[:, 1:],
        number_of={user_id: number for number, user_id in enumerate(users)},
    )
