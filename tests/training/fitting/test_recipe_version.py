"""What every recipe says and computes on a small training set, and the recipe version that this belongs to.

Whoever changes a result raises `RECIPE_VERSION` and copies the new figures from the message of the failed test. The
tolerance is thirty times what other instructions of a processor, or another number of threads, change.
"""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from grasp.versions import digest
from training.data.training_set import TrainingSet
from training.evaluation.ranking import evaluation_events, ranker_scorer
from training.fitting.kernel_calibration import KERNEL_WEIGHT_GRID
from training.fitting.recipes import RECIPE_VERSION, RECIPES, recipe
from training.fitting.training_loop import fit
from training.model.config import RankerConfig

VERSION = 2  # of the figures below
# By recipe: a hash of what it says; the loss of the last epoch, the mean log-likelihood of validation targets, and the
# same with a kernel.
KNOWN = {
    "bert4rec": ("bb8a9ae0", 2.82652, -4.18571, -4.49814),
    "bert4rec_alphafuse": ("2e463c55", 6.30493, -6.29939, -5.69425),
    "bert4rec_grasp": ("f05162ea", 3.39675, -3.71117, -3.93423),
    "bert4rec_legacy": ("476be502", 1.44296, -3.79616, -4.19295),
    "bert4rec_llm_esr": ("d9a03c3c", 3.00159, -3.58879, -4.08096),
    "bert4rec_llm_init": ("cb7d56e3", 2.68947, -3.60183, -4.13295),
    "bert4rec_rlmrec_contrastive": ("585ca43a", 2.74568, -3.68664, -4.03066),
    "bert4rec_rlmrec_generative": ("3f7fb76a", 2.86773, -3.63387, -4.01835),
    "gru4rec": ("d01f285d", 2.58768, -3.70286, -4.20639),
    "gru4rec_alphafuse": ("a9cc995a", 5.81150, -7.18225, -7.27992),
    "gru4rec_grasp": ("b32e11bf", 4.65091, -3.45603, -4.28535),
    "gru4rec_legacy": ("62aac479", 1.35388, -3.64517, -4.04776),
    "gru4rec_llm_esr": ("d2278472", 2.55025, -3.49995, -4.14934),
    "gru4rec_llm_init": ("1e3aab4d", 2.40792, -3.40396, -4.29483),
    "gru4rec_rlmrec_contrastive": ("d74d8904", 2.54601, -3.42635, -4.02765),
    "gru4rec_rlmrec_generative": ("0f30a487", 2.54613, -3.43359, -4.09696),
    "sasrec": ("30d5fb29", 2.48729, -3.35334, -4.22963),
    "sasrec_alphafuse": ("e7c32b42", 5.32557, -7.00588, -7.64756),
    "sasrec_grasp": ("57462a4e", 4.72726, -3.35143, -4.34895),
    "sasrec_grasp_described": ("5aaab0d6", 4.72449, -3.34640, -4.35085),
    "sasrec_legacy": ("5dc82518", 1.42332, -3.67652, -4.19201),
    "sasrec_llm_esr": ("03908318", 2.50296, -3.58609, -4.15195),
    "sasrec_llm_init": ("b3cb8d1a", 2.27475, -3.16752, -4.33660),
    "sasrec_rlmrec_contrastive": ("0869ae07", 2.53992, -3.48751, -4.24447),
    "sasrec_rlmrec_generative": ("9abf5916", 2.55261, -3.44050, -4.27737),
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


def said(name: str) -> str:
    """A hash of all settings that are on, and of the weights that a kernel may have; a small run misses some.

    So a new setting that is off changes no hash.
    """
    config = recipe(name)
    ranker = RankerConfig(NUM_ITEMS, 384, config.backbone, enhancer=config.enhancer, **dict(config.ranker))
    settings = [{key: value for key, value in asdict(each).items() if value} for each in (config, ranker)]
    return digest([settings, KERNEL_WEIGHT_GRID])[:8]


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
    text, figures = said(name), computed(walks, name)

    note = f'"{name}": ("{text}", {", ".join(f"{each:.5f}" for each in figures)}),'
    assert VERSION == RECIPE_VERSION, f"the recipe version was raised; write here {note}"
    known, *expected = KNOWN[name]
    assert (text, figures) == (known, pytest.approx(tuple(expected), rel=TOLERANCE)), (
        f"{name} is another recipe now: raise RECIPE_VERSION, so that old rows count as stale, and write here {note}"
    )
