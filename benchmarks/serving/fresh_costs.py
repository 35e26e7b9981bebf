"""What takers, votes and moments cost in serving's process. All is made up, because times depend on shapes alone.

One thread. Sides take turns request by request, so that a busy machine slows all of them; a figure is the median over
rounds of what a round's requests say.

Shape suffixes:  T sequence length  N items  W windows of `TAKER_DAYS`  M moments  D width of a state
"""

# ruff: noqa: N803 - the shape suffixes above

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from grasp.moments import HISTORY_LENGTH, VoteRule, unit_states
from grasp.tables import TAKER_DAYS
from serving.ranking.candidates import Additions, Candidates
from serving.ranking.items import ItemSide
from serving.ranking.moments import MomentRows, ReleaseMoments
from serving.releases.carried_moments import states_of
from training.fitting.recipes import DEFAULT, recipe
from training.model.config import RankerConfig
from training.model.enhancers.id_embeddings import UserVectors
from training.model.history_kernel import KINDS
from training.model.inference import InferenceRanker
from training.model.ranker import Ranker

NUM_ITEMS, SEMANTIC_SIZE, LENGTH, WIDTH = 12_000, 384, 100, 64
NUM_SHOP_MOMENTS = 10_000  # the busiest month of Beauty, which has as many items, has 9,404
NUM_MOMENTS, MOMENTS_PER_USER, NOISE = 200_000, 4, 0.3
ROUNDS, REQUESTS, NUM_WARM_UP = 9, 200, 50


def fresh_costs(rounds: int = ROUNDS, requests: int = REQUESTS, num_moments: int = NUM_MOMENTS) -> dict[str, Any]:
    """What GRASP adds to a request of its backbone, fresh features included, and a search of moments; milliseconds.

    The moments of a shop are searched in each request; a search among `num_moments` is timed alone.
    """
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    items = _items(random)
    ranker = _untrained(DEFAULT, items)
    state_MD = states_of(ranker, _taken(random, (NUM_SHOP_MOMENTS, HISTORY_LENGTH)) + 1)
    names = ("backbone", "added", "added_by_fresh", "added_by_search")
    turn = _turns(items, ranker, ReleaseMoments(_moments(state_MD, random), VoteRule()), random)
    added = _medians(turn, rounds, requests, names)
    many = _noisy(state_MD[np.arange(num_moments) % len(state_MD)], random)
    moments = ReleaseMoments(_moments(many, random), VoteRule())
    search = _medians(lambda: _search(moments, many, random), rounds, requests, ("search",))
    sizes = {"num_items": NUM_ITEMS, "width": WIDTH, "length": LENGTH}
    of_moments = {"num_shop_moments": NUM_SHOP_MOMENTS, "num_moments": num_moments}
    return added | search | sizes | of_moments | {"rounds": rounds, "requests": requests}


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


def _turns(
    items: ItemSide, ranker: Ranker, moments: ReleaseMoments, random: np.random.Generator
) -> Callable[[], tuple[float, ...]]:
    """A function that times one history: the backbone, what GRASP takes beyond it, fresh features, and their search."""
    backbone, grasp, fresh = InferenceRanker(_untrained("sasrec", items)), InferenceRanker(ranker), ranker.fresh
    fresh.load_state_dict({name: torch.ones_like(each) for name, each in fresh.state_dict().items()})
    users = UserVectors(torch.randn(1, SEMANTIC_SIZE), torch.randn(1, SEMANTIC_SIZE))
    plain = Candidates(grasp.candidate_ND[1:])
    with torch.inference_mode():
        takers_N = fresh.of_takers(torch.from_numpy(items.takers_WN))
    hot = Candidates(grasp.candidate_ND[1:], takers_N=takers_N)
    kernel = grasp.kernel
    assert kernel is not None

    def turn() -> tuple[float, ...]:
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
        state_D = grasp.state(view_VTD)  # in turn too, so that both find the caches as a request does
        marks.append(time.perf_counter())
        votes = moments.votes("u1", state_D.numpy())
        marks.append(time.perf_counter())
        with torch.inference_mode():
            value_V = fresh.of_state_votes(torch.from_numpy(votes.weights))
        hot.scores(state_D, added + Additions(torch.from_numpy(votes.items), value_V))
        marks.append(time.perf_counter())
        looked_up, backbone_only, plain_scored, views, _, searched, scored = np.diff(marks)
        of_fresh = searched + scored - plain_scored
        added_seconds = views - looked_up + of_fresh
        return tuple(1000 * each for each in (looked_up + backbone_only, added_seconds, of_fresh, searched))

    return turn


def _search(moments: ReleaseMoments, state_MD: np.ndarray, random: np.random.Generator) -> tuple[float]:
    (state_D,) = _noisy(state_MD[random.integers(0, len(state_MD), 1)], random).astype(np.float32)
    started = time.perf_counter()
    moments.votes("u1", state_D)
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


def _taken(random: np.random.Generator, shape: int | tuple[int, int]) -> np.ndarray:
    """Rows of items, few of which are taken often."""
    share_N = 1 / (np.arange(NUM_ITEMS) + 20)
    return random.choice(NUM_ITEMS, shape, p=share_N / share_N.sum())


def _noisy(state_MD: np.ndarray, random: np.random.Generator) -> np.ndarray:
    noise_MD = random.normal(size=state_MD.shape) * NOISE / np.sqrt(state_MD.shape[1])
    return unit_states(state_MD + noise_MD).astype(np.float16)


def _moments(state_MD: np.ndarray, random: np.random.Generator) -> MomentRows:
    num_users = max(1, len(state_MD) // MOMENTS_PER_USER)
    return MomentRows(
        user_M=random.integers(0, num_users, len(state_MD)),
        item_M=_taken(random, len(state_MD)) + 1,
        state_MD=state_MD,
        age_M=np.sort(random.integers(0, 30, len(state_MD)))[::-1],
        number_of={f"u{number}": number for number in range(num_users)},
    )
