"""What the ranker costs in the service's process: GRASP beside its backbone.

Everything runs on one thread. Sides take turns request by request, so that a busy machine slows both. A figure is the
median over rounds of a round's percentile.

Shape suffixes:  N items   T history   V views of a step   D width
"""

import time
from typing import Any

import numpy as np
import torch

from training.fitting.recipes import DEFAULT, recipe
from training.model.config import RankerConfig
from training.model.enhancers.id_embeddings import UserVectors
from training.model.history_kernel import KINDS
from training.model.inference import InferenceRanker
from training.model.ranker import Ranker

NUM_ITEMS, SEMANTIC_SIZE, LENGTH = 12_000, 384, 100
GOAL_WIDTH = 64  # of both sides where GRASP's cost has a goal; the default recipe is wider
ROUNDS, REQUESTS, WARM_UP = 9, 200, 50


def added_costs(rounds: int = ROUNDS, requests: int = REQUESTS, num_items: int = NUM_ITEMS) -> dict[str, Any]:
    """What GRASP adds at the goal's width, and (`as_served`) at the width of the default recipe."""
    served_width = int(str(dict(recipe(DEFAULT).ranker)["width"]))
    at_goal, as_served = (added_cost(width, rounds, requests, num_items) for width in (GOAL_WIDTH, served_width))
    return at_goal | {"as_served": as_served}


def added_cost(width: int, rounds: int, requests: int, num_items: int) -> dict[str, Any]:
    """What GRASP and its history kernel add to a request of its backbone: milliseconds and their ratio.

    Both are frozen and equally wide. Untrained weights cost as much as trained ones; the kernel's stored neighbours are
    random.
    """
    torch.set_num_threads(1)
    backbone, grasp = (InferenceRanker(_untrained(name, num_items, width)) for name in ("sasrec", DEFAULT))
    random = np.random.default_rng(0)
    users = UserVectors(torch.randn(1, SEMANTIC_SIZE), torch.randn(1, SEMANTIC_SIZE))
    found: dict[str, list[float]] = {"backbone_p50": [], "added_p50": [], "added_p99": [], "share": []}
    for number in range(rounds + 1):
        times = np.array([_turn(backbone, grasp, random, users) for _ in range(requests if number else WARM_UP)])
        backbone_ms, added_ms = times.T
        if number:
            found["backbone_p50"].append(float(np.median(backbone_ms)))
            found["added_p50"].append(float(np.median(added_ms)))
            found["added_p99"].append(float(np.quantile(added_ms, 0.99)))
            found["share"].append(found["added_p50"][-1] / found["backbone_p50"][-1])
    medians = {name: float(np.median(each)) for name, each in found.items()}
    return medians | {"width": width, "rounds": rounds, "requests": requests}


def _turn(
    backbone: InferenceRanker, grasp: InferenceRanker, random: np.random.Generator, users: UserVectors
) -> tuple[float, float]:
    """Milliseconds of one history: the backbone with its item lookup, and what GRASP does beyond that lookup."""
    score_N = torch.zeros(len(grasp.candidate_ND))
    items_T = torch.from_numpy(random.integers(1, len(score_N), LENGTH))
    assert grasp.kernel is not None
    with torch.inference_mode():
        started = time.perf_counter()
        view_VTD, _ = backbone.views(items_T, users)
        looked_up = time.perf_counter()
        backbone.state(view_VTD)
        backbone_done = time.perf_counter()
        view_VTD, _ = grasp.views(items_T, users)
        score_N.index_add_(0, *grasp.kernel.sparse_scores(items_T))
        grasp_done = time.perf_counter()
        grasp.state(view_VTD)  # so that both sides find caches as a request does
    added = (grasp_done - backbone_done) - (looked_up - started)
    return 1000 * (backbone_done - started), 1000 * added


def _untrained(name: str, num_items: int, width: int) -> Ranker:
    chosen = recipe(name)
    torch.manual_seed(0)
    config = RankerConfig(
        num_items,
        SEMANTIC_SIZE,
        chosen.backbone,
        enhancer=chosen.enhancer,
        **dict(chosen.ranker) | {"width": width},  # type: ignore[arg-type]
    )
    ranker = Ranker(config).eval().requires_grad_(False)
    ranker.attach_items(torch.randn(num_items, SEMANTIC_SIZE), torch.randn(num_items, SEMANTIC_SIZE))
    if ranker.kernel is not None:
        ranker.kernel.weights_K.fill_(1)
        for kind in KINDS:
            ranker.kernel.get_buffer(f"{kind}_ids_NM").random_(1, num_items + 1)
            ranker.kernel.get_buffer(f"{kind}_values_NM").uniform_()
    return ranker
