"""An inference ranker gives the scores of the ranker it was made from."""

import itertools

import pytest
import torch

from training.fitting.recipes import RECIPES, recipe
from training.model.backbones import TransformerBackbone
from training.model.config import RankerConfig
from training.model.enhancers.id_embeddings import UserVectors
from training.model.inference import InferenceRanker, can_fold
from training.model.ranker import Ranker

NUM_ITEMS, NUM_NEWER, SIZE, MAX_LENGTH = 30, 3, 12, 9
CLOSE = {"rtol": 0, "atol": 1e-5}


def new_ranker(**switches: object) -> Ranker:
    torch.manual_seed(1)
    common = {"num_items": NUM_ITEMS, "semantic_size": SIZE}
    small = {"max_length": MAX_LENGTH, "width": 8, "null_width": 4, "context_width": 8, "num_components": 10}
    ranker = Ranker(RankerConfig(**(common | switches | small)))
    with torch.no_grad():
        for parameter in ranker.parameters():  # zeros, as before training, would hide errors
            parameter.add_(0.1 * torch.randn(parameter.shape))
        ranker.enhancer.item.weight[0] = 0
    if ranker.config.num_lenders:
        ranker.enhancer.set_lenders(torch.randn(NUM_ITEMS, SIZE), torch.randint(0, 9, (NUM_ITEMS,)))
    ranker.eval().requires_grad_(False)
    ranker.attach_items(torch.randn(NUM_ITEMS + NUM_NEWER, SIZE), torch.randn(NUM_ITEMS + NUM_NEWER, SIZE))
    return ranker


def assert_same(ranker: Ranker) -> None:
    inference, users = InferenceRanker(ranker), UserVectors(torch.randn(1, SIZE), torch.randn(1, SIZE))
    for length in (1, 2, MAX_LENGTH, MAX_LENGTH + 4):
        items_T = torch.randint(1, NUM_ITEMS + NUM_NEWER + 1, (length,))
        views = inference.views(items_T, users)
        state_D = inference.state(views)
        expected_BD = ranker.last_state(items_T[None], users.semantic_BS, users.neighbour_BS)
        torch.testing.assert_close(state_D, expected_BD[0], **CLOSE)
        explained_D, without_TD = inference.state_and_without(views, 4)
        torch.testing.assert_close(explained_D, state_D, **CLOSE)
        is_transformer = isinstance(ranker.backbone, TransformerBackbone)
        assert is_transformer == (without_TD is not None)
        if without_TD is not None:
            assert without_TD.shape == (min(length, 4), len(state_D))
            assert torch.isfinite(without_TD).all()
    torch.testing.assert_close(inference.candidate_ND, ranker.candidate_vectors(), **CLOSE)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_gives_equal_scores_in_inference(name):
    chosen = recipe(name)
    assert_same(new_ranker(**(dict(chosen.ranker) | {"backbone": chosen.backbone, "enhancer": chosen.enhancer})))


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("user_text", ["described", "mean_of_prefix_items"])
def test_folded_grasp_gives_equal_scores(backbone, num_heads, user_text):
    given = [("sum", "mean"), ("sem", "sem+id"), (True, False), ("mlp", "linear")]
    for normalise, representation, use_similar, candidate in itertools.product(*given):
        ranker = new_ranker(
            backbone=backbone,
            num_heads=num_heads,
            user_text=user_text,
            normalise=normalise,
            item_representation=representation,
            use_similar=use_similar,
            candidate=candidate,
            use_global=False,
        )
        assert can_fold(ranker.config)
        assert_same(ranker)


@pytest.mark.parametrize(
    "switches",
    [
        {"use_global": True},
        {"mode": "full"},
        {"mode": "cross"},
        {"mode": "gate"},
        {"activation": "softmax"},
        {"use_attention": False},
        {"item_representation": "dual"},
        {"num_blocks": 1},
        {"num_blocks": 3},
    ],
    ids=str,
)
def test_ablations_give_equal_scores_in_inference(switches):
    assert_same(new_ranker(**({"use_global": False} | switches)))


def test_the_default_recipe_can_be_folded():
    for name in ("sasrec_grasp", "gru4rec_grasp", "bert4rec_grasp", "sasrec_grasp_described"):
        assert can_fold(new_ranker(**dict(recipe(name).ranker)).config)


@pytest.mark.parametrize("enhancer", ["none", "grasp"])
def test_the_state_without_the_newest_item_is_exact(enhancer):
    ranker, users = new_ranker(enhancer=enhancer), UserVectors(torch.randn(1, SIZE), torch.randn(1, SIZE))
    inference, items_T = InferenceRanker(ranker), torch.randint(1, NUM_ITEMS, (MAX_LENGTH,))

    _, without_TD = inference.state_and_without(inference.views(items_T, users), MAX_LENGTH)

    expected_BD = ranker.last_state(items_T[None, :-1], users.semantic_BS, users.neighbour_BS)
    torch.testing.assert_close(without_TD[-1], expected_BD[0], **CLOSE)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_one_block_leaves_a_step_out_exactly(num_heads):
    """Only positions would differ: with one block and without them, the estimate is the state without the item."""
    ranker, users = (
        new_ranker(enhancer="none", num_blocks=1, num_heads=num_heads),
        UserVectors(*torch.randn(2, 1, SIZE)),
    )
    with torch.no_grad():
        ranker.backbone.position.weight.zero_()
    inference, items_T = InferenceRanker(ranker), torch.randint(1, NUM_ITEMS, (MAX_LENGTH,))

    _, without_TD = inference.state_and_without(inference.views(items_T, users), MAX_LENGTH)

    for place in range(MAX_LENGTH):
        left_BT = torch.cat([items_T[:place], items_T[place + 1 :]])[None]
        expected_BD = ranker.last_state(left_BT, users.semantic_BS, users.neighbour_BS)
        torch.testing.assert_close(without_TD[place], expected_BD[0], **CLOSE)
