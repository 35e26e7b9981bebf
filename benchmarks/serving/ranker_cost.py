"""What the ranker costs in the service's process: GRASP beside its backbone, and a catalogue of 1.2 million items.

Everything runs on one thread. Sides take turns request by request, so that a busy machine slows both. A figure is the
median over rounds of a round's percentile.

Shape suffixes:  N items   S semantic size   D width of a state   Q asked states   L additions of the history kernel
"""

# ruff: noqa: N803, N815 - the shape suffixes above

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from grasp.progress import say
from grasp.versions import digest
from serving.ranking.candidates import RECALL_AT, Candidates, Index, KernelAdditions, recall
from training.data.training_set import TrainingSet
from training.evaluation.ranking import evaluation_events
from training.fitting.recipes import DEFAULT, TrainConfig, recipe
from training.fitting.training_loop import fit
from training.model.config import RankerConfig
from training.model.enhancers.id_embeddings import UserVectors
from training.model.history_kernel import KINDS
from training.model.inference import InferenceRanker
from training.model.ranker import Ranker

NUM_ITEMS, SEMANTIC_SIZE, LENGTH = 12_000, 384, 100
GOAL_WIDTH = 64  # of both sides where GRASP's cost has a goal; the default recipe is wider
NUM_LARGE = 1_200_000
NOISE = 0.5  # added to a copied item, in standard deviations of each coordinate
NUM_STATES = 200
NUM_TRAINED_EPOCHS = 5  # enough for vectors that look like trained ones
ROUNDS, REQUESTS, WARM_UP = 9, 200, 50


@dataclass(frozen=True)
class Factors:
    """Vectors of a ranker: of items, and states of users whose next item it never saw."""

    item_ND: torch.Tensor
    state_QD: torch.Tensor
    origin: str


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


def large_catalogue(factors: Factors, num_items: int = NUM_LARGE, rounds: int = 3) -> dict[str, Any]:
    """Time to find the best hundred among noisy copies of `factors`, by the index and exactly, and the index's recall.

    Both sides merge the kernel's additions to 1,500 random items.
    """
    torch.set_num_threads(1)
    candidate_ND = _copies(factors.item_ND, num_items)
    started = time.perf_counter()
    started_cpu = time.process_time()
    index = Index(candidate_ND.numpy())
    built = {"build_seconds": time.perf_counter() - started, "build_cpu_seconds": time.process_time() - started_cpu}
    sides = {"exact": Candidates(candidate_ND), "index": Candidates(candidate_ND, index)}
    random = np.random.default_rng(1)
    times: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for each in times.values():
            each.append([])
        for state_D in factors.state_QD:
            row_L = torch.from_numpy(random.integers(0, num_items, 1500))
            added = KernelAdditions(row_L, torch.rand(1500) * state_D.std())
            for side, candidates in sides.items():
                started = time.perf_counter()
                candidates.best(RECALL_AT, state_D, added, (), None)
                times[side][-1].append(1000 * (time.perf_counter() - started))
    return {
        "origin": factors.origin,
        "num_items": num_items,
        "width": candidate_ND.shape[1],
        "recall": recall(sides["exact"], sides["index"], factors.state_QD),
        "index_mib": index.num_bytes / 2**20,
        **built,
        **{
            f"{side}_p{percent}": float(np.median([np.percentile(each, percent) for each in rounds_of]))
            for side, rounds_of in times.items()
            for percent in (50, 99)
        },
    }


def _copies(item_ND: torch.Tensor, num_items: int) -> torch.Tensor:
    """Random items of a table, each with its own noise."""
    torch.manual_seed(2)
    noise_D = NOISE * item_ND.std(0)
    copy_ND = item_ND[torch.randint(len(item_ND), (num_items,))]
    return copy_ND.addcmul_(torch.randn_like(copy_ND), noise_D)


def made_up_factors(width: int = 64, num_states: int = NUM_STATES) -> Factors:
    """Vectors in clusters, some longer than others, and states that point at a cluster."""
    torch.manual_seed(3)
    spread_D = torch.linspace(1.5, 0.5, width) / 8
    centre_CD = torch.randn(200, width)
    item_ND = (centre_CD[torch.randint(200, (NUM_ITEMS,))] + torch.randn(NUM_ITEMS, width)) * spread_D
    item_ND *= torch.exp(0.3 * torch.randn(NUM_ITEMS, 1))
    state_QD = 8 * (centre_CD[torch.randint(200, (num_states,))] + torch.randn(num_states, width)) * spread_D
    return Factors(item_ND, state_QD, "made-up vectors")


def trained_factors(training_set: TrainingSet, name: str, folder: Path) -> Factors:
    """Item vectors and last states of validation users, from the default recipe after a few epochs.

    A file in `folder` keeps them for this recipe. `name` is that of the data set.
    """
    config = replace(recipe(DEFAULT), max_epochs=NUM_TRAINED_EPOCHS)
    file = folder / f"factors-{digest(asdict(config))[:8]}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_fitted_factors(training_set, config), file)
    kept = load_file(file)
    origin = f"{DEFAULT} after {NUM_TRAINED_EPOCHS} epochs on {name}"
    return Factors(kept["item_ND"], kept["state_QD"], origin)


def _fitted_factors(training_set: TrainingSet, config: TrainConfig) -> dict[str, torch.Tensor]:
    frozen = InferenceRanker(fit(training_set, config, 0, lambda epoch, found: say(f"epoch {epoch}: {found}")).ranker)
    vectors = (torch.from_numpy(each) for each in (training_set.user_semantic, training_set.user_neighbour))
    semantic_US, neighbour_US = vectors
    states = []
    for event in evaluation_events(training_set, "validation")[:NUM_STATES]:
        users = UserVectors(semantic_US[event.user][None], neighbour_US[event.user][None])
        states.append(frozen.state(frozen.views(torch.from_numpy(event.history.astype(np.int64)), users)[0]))
    return {"item_ND": frozen.candidate_ND[1:].contiguous(), "state_QD": torch.stack(states)}
