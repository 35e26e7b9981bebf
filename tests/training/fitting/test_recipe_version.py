"""What every family of recipes computes on a small training set, and the recipe version that this belongs to.

Whoever changes a result raises `RECIPE_VERSION` and copies the new figures from the message of the failed test. The
tolerance is thirty times what other instructions of a processor, or another number of threads, change.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from training.data.training_set import TrainingSet
from training.evaluation.ranking import evaluation_events, ranker_scorer
from training.fitting.recipes import RECIPE_VERSION, RECIPES, recipe
from training.fitting.training_loop import fit

VERSION = 1  # of the figures below
# By recipe: the loss of the last epoch, the mean log-likelihood of validation targets, and the same with a kernel.
COMPUTED = {
    "bert4rec": (2.82652, -4.18571, -4.49814),
    "bert4rec_alphafuse": (6.30493, -6.29939, -5.69425),
    "bert4rec_grasp": (3.15707, -3.53973, -3.91898),
    "bert4rec_legacy": (1.44296, -3.79616, -4.19295),
    "bert4rec_llm_esr": (3.00159, -3.58879, -4.08096),
    "bert4rec_llm_init": (2.68947, -3.60183, -4.13295),
    "bert4rec_rlmrec_contrastive": (2.74568, -3.68664, -4.03066),
    "bert4rec_rlmrec_generative": (2.86773, -3.63387, -4.01835),
    "gru4rec": (2.58768, -3.70286, -4.20639),
    "gru4rec_alphafuse": (5.81150, -7.18225, -7.27992),
    "gru4rec_grasp": (4.16232, -3.35047, -4.27527),
    "gru4rec_legacy": (1.35388, -3.64517, -4.04776),
    "gru4rec_llm_esr": (2.55025, -3.49995, -4.14934),
    "gru4rec_llm_init": (2.40792, -3.40396, -4.29483),
    "gru4rec_rlmrec_contrastive": (2.54601, -3.42635, -4.02765),
    "gru4rec_rlmrec_generative": (2.54613, -3.43359, -4.09696),
    "sasrec": (2.48729, -3.35334, -4.22963),
    "sasrec_alphafuse": (5.32557, -7.00588, -7.64756),
    "sasrec_grasp": (4.36932, -3.32290, -4.24460),
    "sasrec_grasp_described": (4.36082, -3.32235, -4.23650),
    "sasrec_legacy": (1.42332, -3.67652, -4.19201),
    "sasrec_llm_esr": (2.50296, -3.58609, -4.15195),
    "sasrec_llm_init": (2.27475, -3.16752, -4.33660),
    "sasrec_rlmrec_contrastive": (2.53992, -3.48751, -4.24447),
    "sasrec_rlmrec_generative": (2.55261, -3.44050, -4.27737),
}
TOLERANCE = 3e-4
NUM_ITEMS, NUM_USERS, SIZE = 40, 48, 12
KERNEL_WEIGHTS = (1.0, 10.0, 5.0)


@pytest.fixture(scope="module")
def walks() -> TrainingSet:
    """Users who mostly take one of the next items."""
    random = np.random.default_rng(11)
    steps = random.choice([-3, 1, 1, 2, 5], size=(NUM_USERS, 9)).cumsum(1)
    sequences = list((random.integers(NUM_ITEMS, size=(NUM_USERS, 1)) + steps) % NUM_ITEMS + 1)
    vectors = random.normal(size=(4, NUM_USERS, SIZE)).astype(np.float32)
    return TrainingSet(
        item_ids=[str(item) for item in range(NUM_ITEMS)],
        item_semantic=vectors[0, :NUM_ITEMS],
        item_neighbour=vectors[1, :NUM_ITEMS],
        popularity=np.ones(NUM_ITEMS, int),
        item_is_tail=np.zeros(NUM_ITEMS, bool),
        user_ids=[str(user) for user in range(NUM_USERS)],
        user_semantic=vectors[2],
        user_neighbour=vectors[3],
        user_is_tail=np.zeros(NUM_USERS, bool),
        sequences=sequences,
        splits=[np.array(["train"] * 8 + ["validation"], object)] * NUM_USERS,
        days=[np.arange(9)] * NUM_USERS,
    )


def computed(training_set: TrainingSet, name: str) -> tuple[float, float, float]:
    """All of the recipe but its size, its length and how its epoch is chosen."""
    config = replace(recipe(name), max_epochs=2, batch_size=8, learning_rate=0.02, num_negatives=16)
    config = replace(config, selection="filtered")
    config = config.with_switches(
        width=8, context_width=8, null_width=4, num_components=SIZE, max_length=8, kernel_length=3, kernel_neighbours=6
    )
    losses = []
    ranker = fit(training_set, config, 0, lambda _, found: losses.append(found["loss"])).ranker
    assert ranker.kernel is not None
    ranker.kernel.weights_K.copy_(torch.tensor(KERNEL_WEIGHTS))  # the chosen ones jump at the slightest difference
    events = evaluation_events(training_set, "validation")
    targets = np.array([event.target for event in events]) - 1
    likelihoods = []
    for with_kernel in (False, True):
        scores = ranker_scorer(ranker, training_set.item_ids, training_set, with_kernel=with_kernel)(events)
        likelihoods.append(float(log_softmax(scores, axis=1)[np.arange(len(events)), targets].mean()))
    return losses[-1], likelihoods[0], likelihoods[1]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_computes_what_its_version_says(walks, name):
    found = computed(walks, name)

    assert VERSION == RECIPE_VERSION, f"the recipe version was raised: {name!r} now computes {found}"
    assert found == pytest.approx(COMPUTED[name], rel=TOLERANCE), (
        f"{name} computes something else: raise RECIPE_VERSION, so that measured rows count as stale, and note {found}"
    )
