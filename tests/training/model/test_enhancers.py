# ruff: noqa: N803 - shape suffixes as in training/model/ranker.py
"""Tests of every enhancer over every backbone, then tests of single enhancers."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from training.fitting.batches import Batch
from training.fitting.losses import batch_loss
from training.fitting.recipes import plain
from training.model.artefact import RankerMetadata, load_ranker, save_ranker
from training.model.attention import attention_mask
from training.model.config import MASK, RankerConfig
from training.model.enhancers import ENHANCERS
from training.model.enhancers.alphafuse import AlphaFuse
from training.model.enhancers.grasp import Grasp, IndexedItems
from training.model.enhancers.id_embeddings import UserVectors
from training.model.enhancers.llm_esr import LlmEsr
from training.model.enhancers.llm_init import LlmInit
from training.model.enhancers.rlmrec import RlmRecContrastive, RlmRecGenerative, info_nce
from training.model.ranker import Ranker
from training.model.semantic_adapter import whitening_map

BACKBONES = ("sasrec", "gru4rec", "bert4rec")
ITEMS_BT = torch.tensor([[0, 3, 1, 7, 2], [5, 4, 9, 12, 6]])
USERS_BS = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))
CONFIG = RankerConfig(num_items=12, semantic_size=10, width=8, null_width=4, max_length=5, dropout=0.0)

every_enhancer = pytest.mark.parametrize("enhancer", sorted(ENHANCERS))
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
every_switch = pytest.mark.parametrize("switches", [{}, {"score": "cosine", "kernel_length": 2}], ids=["dot", "cosine"])
DUAL = {"item_representation": "dual", "num_lenders": 2}


def later_item_changed() -> torch.Tensor:
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = torch.tensor([11, 8])
    return changed_BT


@every_enhancer
@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("training", [False, True])
def test_changing_a_later_item_changes_no_earlier_state(make_ranker, enhancer, backbone, training):
    ranker = make_ranker(enhancer=enhancer, backbone=backbone).train(training)

    before = ranker(ITEMS_BT, USERS_BS, USERS_BS)
    after = ranker(later_item_changed(), USERS_BS, USERS_BS)

    assert ranker.config.is_causal
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    assert not torch.allclose(after[:, -1], before[:, -1])


@every_enhancer
@pytest.mark.parametrize("changed", [{"backbone": "bert4rec"}, {"variant": "legacy"}])
def test_a_ranker_that_reads_ahead_says_so(make_ranker, enhancer, changed):
    ranker = make_ranker(enhancer=enhancer, **changed)

    before = ranker(ITEMS_BT, USERS_BS, USERS_BS)
    after = ranker(later_item_changed(), USERS_BS, USERS_BS)

    assert not ranker.config.is_causal
    assert not torch.allclose(after[:, :-1], before[:, :-1])


@every_enhancer
@every_backbone
@every_switch
def test_padding_has_no_effect(make_ranker, enhancer, backbone, switches):
    ranker = make_ranker(enhancer=enhancer, backbone=backbone, **switches)
    short_BT, padded_BT = torch.tensor([[3, 1]]), torch.tensor([[0, 0, 0, 3, 1]])
    users = USERS_BS[:1], USERS_BS[1:]

    torch.testing.assert_close(ranker(padded_BT, *users)[:, 3:], ranker(short_BT, *users))
    torch.testing.assert_close(ranker.scores(padded_BT, *users), ranker.scores(short_BT, *users))
    assert ranker(padded_BT, *users)[:, :3].eq(0).all()
    assert ranker.candidate_vectors()[0].eq(0).all()


@pytest.mark.parametrize(
    ("enhancer", "variant"), [*((name, "strong") for name in sorted(ENHANCERS)), ("none", "legacy")]
)
@every_backbone
def test_one_batch_can_be_overfitted(make_ranker, enhancer, backbone, variant):
    ranker = make_ranker(enhancer=enhancer, backbone=backbone, variant=variant, kernel_length=2).train()
    target_B = torch.tensor([8, 1])
    known_BT = torch.cat([ITEMS_BT, target_B[:, None]], 1)
    items_BT = F.pad(ITEMS_BT, (0, 1), value=MASK) if backbone == "bert4rec" else ITEMS_BT
    valid_BT = torch.zeros_like(items_BT, dtype=torch.bool)
    valid_BT[:, -1] = True
    target_BT = target_B[:, None].expand_as(items_BT)
    batch = Batch(torch.tensor([0, 1]), items_BT, target_BT, valid_BT, target_BT, known_BT, USERS_BS, USERS_BS)
    config = replace(plain(backbone, enhancer), loss="cross_entropy")
    optimiser = torch.optim.Adam(ranker.parameters(), 0.03)

    for _ in range(40):
        optimiser.zero_grad()
        batch_loss(ranker, batch, config).backward()
        optimiser.step()

    scores_BN = ranker.eval().scores(ITEMS_BT, USERS_BS, USERS_BS)
    scores_BN = scores_BN.scatter(1, ITEMS_BT, -torch.inf)  # own items are no candidates
    assert (scores_BN[:, 1:].softmax(1)[torch.arange(2), target_B - 1] > 0.8).all()
    assert ranker.enhancer.item.weight[0].eq(0).all()


@every_enhancer
@every_backbone
@every_switch
def test_what_is_saved_scores_as_before(make_ranker, item_vectors, tmp_path, enhancer, backbone, switches):
    # torch rounds differently without gradients, so both sides run without.
    ranker = make_ranker(14, enhancer=enhancer, backbone=backbone, **switches).requires_grad_(False)
    metadata = RankerMetadata("x", "ranker_v1", "v1", "x", "1998-04-22", "1998-02-28", 0, {})
    save_ranker(tmp_path, ranker, [str(i) for i in range(12)], metadata)

    loaded = load_ranker(tmp_path).ranker
    loaded.attach_items(*item_vectors(14))
    scores_BN = ranker.scores(ITEMS_BT, USERS_BS, USERS_BS)

    assert torch.equal(loaded.scores(ITEMS_BT, USERS_BS, USERS_BS), scores_BN)
    assert scores_BN.shape == (2, 15)
    assert scores_BN.isfinite().all()  # also of items newer than the model


@every_enhancer
@every_backbone
def test_scores_are_states_times_candidates_plus_the_kernel(make_ranker, enhancer, backbone):
    ranker = make_ranker(14, enhancer=enhancer, backbone=backbone, kernel_length=2)
    state_BD = ranker.last_state(ITEMS_BT, USERS_BS, USERS_BS)
    candidate_ND = torch.stack([ranker.candidate_vectors(torch.tensor([item]))[0] for item in range(15)])
    kernel_BN = ranker.kernel(ITEMS_BT, 14)

    scores_BN = ranker.scores(ITEMS_BT, USERS_BS, USERS_BS)

    torch.testing.assert_close(scores_BN, state_BD @ candidate_ND.T + kernel_BN)
    without_BN = ranker.scores(ITEMS_BT, USERS_BS, USERS_BS, with_kernel=False)
    torch.testing.assert_close(without_BN, state_BD @ candidate_ND.T)
    assert torch.equal(scores_BN, ranker.scores(ITEMS_BT, USERS_BS, USERS_BS, ranker.candidate_vectors()))
    assert kernel_BN[:, 1:].any(1).all()


@every_enhancer
def test_an_item_newer_than_the_model_may_stand_in_a_history(make_ranker, enhancer):
    ranker = make_ranker(14, enhancer=enhancer, kernel_length=2)
    items_BT = torch.tensor([[3, 14]])

    assert ranker.scores(items_BT, USERS_BS[:1], USERS_BS[:1]).isfinite().all()
    if enhancer in ("llm_esr", "alphafuse", "grasp"):  # ... its semantic vector makes it different from others
        other = ranker.last_state(torch.tensor([[3, 13]]), USERS_BS[:1], USERS_BS[:1])
        assert not torch.allclose(ranker.last_state(items_BT, USERS_BS[:1], USERS_BS[:1]), other)
        assert not torch.allclose(ranker.candidate_vectors()[13], ranker.candidate_vectors()[14])


@every_enhancer
@every_backbone
def test_training_and_inference_give_the_same_states(make_ranker, enhancer, backbone):
    ranker = make_ranker(enhancer=enhancer, backbone=backbone)
    in_evaluation = ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidate_vectors()

    ranker.train()

    torch.testing.assert_close((ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidate_vectors()), in_evaluation)


def test_an_enhancer_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"enhancer 'grips' is not one of none, llm_init, .*grasp"):
        Ranker(replace(CONFIG, enhancer="grips"))


# --- LLMInit


def test_llm_init_starts_as_whitened_components_of_unit_length():
    vectors_NS = torch.randn(12, 10, generator=torch.Generator().manual_seed(0)) + 3
    enhancer = LlmInit(CONFIG)
    enhancer.initialise_from(vectors_NS, vectors_NS, torch.ones(12))
    found_ND = enhancer.item.weight[1:].detach() * math.sqrt(8)

    torch.testing.assert_close(found_ND.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(found_ND.T @ found_ND / 12, torch.eye(8), atol=1e-3, rtol=0)
    assert enhancer.item.weight[0].eq(0).all()
    # The first component is the direction in which the vectors differ most.
    centred_NS = vectors_NS - vectors_NS.mean(0)
    first_N = centred_NS @ torch.linalg.svd(centred_NS).Vh[0]
    assert abs(torch.corrcoef(torch.stack([first_N, found_ND[:, 0]]))[0, 1]) == pytest.approx(1, abs=1e-4)


# --- RLMRec


def test_info_nce_equals_the_formula_in_a_naive_loop():
    torch.manual_seed(0)
    query_NK, key_NK = torch.randn(4, 3), torch.randn(4, 3)
    total = 0.0
    for i in range(4):
        similar = [math.exp(F.cosine_similarity(query_NK[i], key_NK[j], dim=0) / 0.2) for j in range(4)]
        total -= math.log(similar[i] / sum(similar))

    assert info_nce(query_NK, key_NK, 0.2).item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("kind", [RlmRecContrastive, RlmRecGenerative])
def test_the_loss_of_rlmrec_falls_as_embeddings_and_vectors_align(kind):
    torch.manual_seed(0)
    enhancer = kind(CONFIG).train()
    enhancer.attach_items(torch.randn(12, 10), torch.randn(12, 10))
    optimiser = torch.optim.Adam(enhancer.parameters(), 0.02)
    losses = []
    for _ in range(60):
        loss = enhancer.auxiliary_loss(torch.arange(1, 13), torch.zeros(2, 8), torch.tensor([0, 1]))
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert losses[-1] < 0.3 * losses[0]


def test_the_loss_of_rlmrec_has_the_published_weight():
    enhancer = RlmRecContrastive(CONFIG)
    enhancer.projection = torch.nn.Identity()
    same_NS, opposite_NS = torch.eye(8), -torch.eye(8)

    # Cosines of 1 with the own vector and 0 with seven others, at temperature 0.2; then of -1.
    for vectors_NS, own in ((same_NS, 5.0), (opposite_NS, -5.0)):
        expected = 0.01 * (math.log(math.exp(own) + 7) - own)
        assert enhancer.alignment(same_NS, vectors_NS).item() == pytest.approx(expected, rel=1e-4)


def test_the_generative_loss_is_a_tenth_of_one_minus_the_cosine():
    enhancer = RlmRecGenerative(CONFIG).eval()
    enhancer.reconstruction = torch.nn.Identity()

    assert enhancer.alignment(torch.eye(4), 3 * torch.eye(4)).item() == pytest.approx(0)
    assert enhancer.alignment(torch.eye(4), -torch.eye(4)).item() == pytest.approx(0.2)


# --- LLM-ESR


def started_llm_esr(user_NS: torch.Tensor) -> LlmEsr:
    torch.manual_seed(0)
    enhancer = LlmEsr(CONFIG)
    enhancer.initialise_from(torch.randn(12, 10), user_NS, torch.ones(12))
    enhancer.attach_items(torch.randn(12, 10), torch.randn(12, 10))
    return enhancer


def test_the_teacher_is_the_mean_of_the_similar_users_states_seen_so_far():
    enhancer = started_llm_esr(torch.randn(12, 10))
    enhancer._similar_UK = torch.tensor([[1, 2, 3]] * 12)
    state_BD = torch.randn(4, 16, requires_grad=True)

    nothing_seen = enhancer.auxiliary_loss(torch.tensor([1]), state_BD[1:3], torch.tensor([1, 2]))
    loss = enhancer.auxiliary_loss(torch.tensor([1]), state_BD[:1], torch.tensor([0]))
    loss.backward()

    assert nothing_seen is None
    teacher_D = (state_BD[1] + state_BD[2]) / 2  # user 3 was never seen
    assert loss.item() == pytest.approx(0.1 * ((state_BD[0] - teacher_D) ** 2).mean().item())
    assert state_BD.grad[1:].eq(0).all()  # the teacher gets no gradient
    assert state_BD.grad[0].any()


def test_later_states_replace_earlier_ones_and_users_without_teacher_are_ignored():
    enhancer = started_llm_esr(torch.randn(12, 10))
    enhancer._similar_UK = torch.tensor([[1], [2]] + [[5]] * 10)
    ones_D = torch.ones(1, 16)
    enhancer.auxiliary_loss(torch.tensor([1]), 7 * ones_D, torch.tensor([1]))
    enhancer.auxiliary_loss(torch.tensor([1]), 3 * ones_D, torch.tensor([1]))

    # User 0 has a teacher at distance 3; user 4 has none and is not in the mean.
    loss = enhancer.auxiliary_loss(torch.tensor([1]), torch.zeros(2, 16), torch.tensor([0, 4]))

    assert loss.item() == pytest.approx(0.1 * 9)


@every_backbone
def test_the_views_of_llm_esr_cross_as_they_do_in_a_naive_loop(backbone):
    torch.manual_seed(0)
    enhancer, vectors_NS = LlmEsr(replace(CONFIG, backbone=backbone)).eval(), torch.randn(12, 10)
    enhancer.initialise_from(vectors_NS, vectors_NS, torch.ones(12))
    enhancer.attach_items(vectors_NS, vectors_NS)
    item_TD = enhancer.item(ITEMS_BT[0, 1:]) + enhancer.position.weight[1:5]
    text_TD = enhancer.adapter(enhancer.adapter.to_components(vectors_NS[ITEMS_BT[0, 1:] - 1])) / math.sqrt(
        CONFIG.width
    )
    text_TD = text_TD + enhancer.position.weight[1:5]

    semantic_BTD, collaborative_BTD = enhancer.views(ITEMS_BT, UserVectors(USERS_BS, USERS_BS))

    for attention, query_TD, key_TD, found_TD in (
        (enhancer.semantic_attention, item_TD, text_TD, semantic_BTD[0]),
        (enhancer.collaborative_attention, text_TD, item_TD, collaborative_BTD[0]),
    ):
        assert found_TD[0].eq(0).all()
        for step in range(4):
            end = 4 if backbone == "bert4rec" else step + 1
            expected, _ = attention(query_TD[None, step : step + 1], key_TD[None, :end], key_TD[None, :end])
            torch.testing.assert_close(found_TD[step + 1], expected[0, 0])


# --- AlphaFuse


def started_alphafuse(vectors_NS: torch.Tensor) -> AlphaFuse:
    enhancer = AlphaFuse(CONFIG)
    enhancer.initialise_from(vectors_NS, vectors_NS, torch.ones(12))
    enhancer.attach_items(vectors_NS, vectors_NS)
    return enhancer


def test_alphafuse_starts_as_the_whitened_vectors_alone():
    vectors_NS = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    weight_DS, bias_D = whitening_map(vectors_NS, 8)

    found_ND = started_alphafuse(vectors_NS).candidate_vectors(torch.arange(1, 13))

    torch.testing.assert_close(found_ND, (vectors_NS @ weight_DS.T + bias_D) / math.sqrt(8))
    assert found_ND.norm(dim=1).square().mean().item() == pytest.approx(1, abs=1e-3)


def test_alphafuse_trains_its_last_coordinates_only():
    enhancer = started_alphafuse(torch.randn(12, 10, generator=torch.Generator().manual_seed(0)))
    before_ND = enhancer.candidate_vectors(torch.arange(13)).detach().clone()
    optimiser = torch.optim.Adam(enhancer.parameters(), 0.1)

    enhancer.candidate_vectors(torch.arange(13)).sum().backward()
    optimiser.step()
    change_ND = enhancer.candidate_vectors(torch.arange(13)) - before_ND

    assert [name for name, _ in enhancer.named_parameters()] == ["item.weight"]
    assert change_ND[:, :4].eq(0).all()
    assert (change_ND[1:, 4:] != 0).all()
    assert change_ND[0].eq(0).all()


@pytest.mark.parametrize("changed", [{"null_width": 9}, {"width": 12}, {"null_width": 0}])
def test_alphafuse_refuses_more_coordinates_than_there_are(changed):
    with pytest.raises(ValueError, match="alphafuse needs 0 < null_width"):
        replace(CONFIG, enhancer="alphafuse", **changed)


# --- GRASP


@pytest.mark.parametrize("switch", [{"user_text": "mean_of_prefix_items"}, {"mode": "cross"}, DUAL], ids=str)
def test_every_switch_of_grasp_is_causal_over_causal_backbones(make_ranker, switch):
    for backbone in ("sasrec", "gru4rec"):
        ranker = make_ranker(backbone=backbone, **switch)
        torch.testing.assert_close(
            ranker(later_item_changed(), USERS_BS, USERS_BS)[:, :-1], ranker(ITEMS_BT, USERS_BS, USERS_BS)[:, :-1]
        )


@every_backbone
def test_padding_has_no_effect_with_two_views_and_lenders(make_ranker, backbone):
    ranker = make_ranker(14, backbone=backbone, **DUAL)
    short_BT, padded_BT = torch.tensor([[3, 1]]), torch.tensor([[0, 0, 3, 1]])
    users = USERS_BS[:1], USERS_BS[1:]

    torch.testing.assert_close(ranker.scores(padded_BT, *users), ranker.scores(short_BT, *users))
    assert ranker.candidate_vectors().shape == (15, 16)
    assert ranker.candidate_vectors()[0].eq(0).all()
    assert ranker.scores(torch.tensor([[14]]), *users).isfinite().all()


def test_in_training_some_items_use_only_borrowed_embeddings(make_ranker):
    enhancer = make_ranker(12, num_lenders=3, lent_only=0.5).enhancer
    asked = torch.arange(1, 13)
    torch.manual_seed(0)
    lenders_NM = enhancer.lenders_NM[asked].long()
    has_lender_N = lenders_NM.any(1)
    lent_ND = enhancer.item.weight[lenders_NM].sum(1) / lenders_NM.bool().sum(1, keepdim=True).clamp(min=1)
    num_alone = []
    for is_training in (True, False):
        is_alone_N = (
            torch.isclose(enhancer.train(is_training).id_embeddings(asked), lent_ND, atol=1e-6).all(1) & has_lender_N
        )
        num_alone.append(int(is_alone_N.sum()))

    assert 0 < num_alone[0] < has_lender_N.sum()
    assert num_alone[1] == 0


def test_lenders_are_the_nearest_other_items_with_a_positive_cosine():
    ranker = Ranker(replace(CONFIG, num_items=6, semantic_size=2, num_components=2, enhancer="grasp", num_lenders=2))
    ranker.enhancer.item_adapter.weight_CS.copy_(torch.eye(2))
    meaning_NS = torch.tensor([[1.0, 0.0], [5.0, 0.5], [0.9, 0.3], [0.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])

    ranker.enhancer.set_lenders(meaning_NS, torch.ones(6))

    assert ranker.enhancer.lenders_NM[1:].tolist() == [[2, 3], [1, 3], [2, 1], [3, 2], [0, 0], [0, 0]]


@pytest.mark.parametrize("training", [False, True])
def test_items_with_fewer_interactions_borrow_more(make_ranker, item_vectors, training):
    ranker = make_ranker(12, num_lenders=3).train(training)
    enhancer = ranker.enhancer
    enhancer.set_lenders(item_vectors(12)[0], torch.tensor([0, 3, 400, *range(9)]))
    ranker.attach_items(*item_vectors(14))
    own_NC = enhancer.item_adapter.to_components(item_vectors(14)[0])
    item, bias = enhancer.item.weight, enhancer.borrow_bias.item()

    found_ND = enhancer.id_embeddings(torch.tensor([1, 2, 3, 14]))

    for found_D, taken, asked in zip(found_ND, (0.5, 3, 400, None), (1, 2, 3, 14), strict=True):
        likeness_N = F.cosine_similarity(own_NC[asked - 1], own_NC[:12], dim=1)
        nearest = [near + 1 for near in likeness_N.argsort(descending=True).tolist() if near + 1 != asked][:3]
        lenders = [near for near in nearest if likeness_N[near - 1] > 0]
        if taken is None:  # newer than the model: all is borrowed
            expected_D = item[lenders].mean(0)
        else:
            share = 1 / (1 + math.exp(math.log(taken) - bias))
            expected_D = (1 - share) * item[asked] + share * item[lenders].mean(0)
        torch.testing.assert_close(found_D, expected_D)


def test_an_item_without_lenders_keeps_its_own_embedding(make_ranker):
    enhancer = make_ranker(num_lenders=2).enhancer
    enhancer.lenders_NM[4], enhancer.lenders_NM[5] = torch.tensor([0, 0]), torch.tensor([7, 0])

    found_TD = enhancer.id_embeddings(torch.tensor([4, 5, 0]))

    share = torch.sigmoid(enhancer.borrow_bias - enhancer.log_count_N[5])
    assert torch.equal(found_TD[0], enhancer.item.weight[4])
    torch.testing.assert_close(found_TD[1], (1 - share) * enhancer.item.weight[5] + share * enhancer.item.weight[7])
    assert found_TD[2:].eq(0).all()


def test_initially_half_is_borrowed_at_three_interactions():
    assert Grasp(replace(CONFIG, num_lenders=2)).borrow_bias.exp().item() == pytest.approx(3)


@pytest.mark.parametrize("training", [False, True])
def test_the_query_of_a_prefix_is_the_mean_of_its_items(make_ranker, training):
    enhancer = make_ranker(14, user_text="mean_of_prefix_items").train(training).enhancer
    items_BT = torch.tensor([[0, 3, 14, MASK, 3, 9]])

    found = enhancer.user_queries(IndexedItems.from_items(items_BT), UserVectors(USERS_BS[:1], USERS_BS[1:]))

    for vectors_NC, found_BTW in zip((enhancer.own_NC, enhancer.neighbour_NC), found, strict=True):
        for step, seen in ((1, [3]), (2, [3, 14]), (3, [3, 14]), (4, [3, 14, 3]), (5, [3, 14, 3, 9])):
            expected_W = enhancer.user_adapter(vectors_NC[seen].mean(0))
            torch.testing.assert_close(found_BTW[0, step], expected_W)


def test_context_width_differs_from_the_model_width(make_ranker):
    ranker = make_ranker(context_width=6, item_representation="dual")
    attention = ranker.enhancer.holistic_attention

    assert ranker.enhancer.item_adapter.map.weight.shape == (6, 9)
    assert attention.self_attention.value.weight.shape == (6, 6)
    assert attention.mlp[-1].out_features == 8
    assert [view.shape for view in ranker.enhancer.views(ITEMS_BT, UserVectors(USERS_BS, USERS_BS))] == [(2, 5, 8)] * 2
    assert ranker.candidate_vectors().shape == (13, 16)


def test_the_mask_is_no_key_of_the_attention(make_ranker):
    ranker = make_ranker(backbone="bert4rec", mode="full")
    hidden_BT = torch.tensor([[3, MASK, 7]])
    users = UserVectors(USERS_BS[:1], USERS_BS[1:])

    with_mask_D = ranker.enhancer.views(hidden_BT, users)[0][0, 2]

    # The sum over 3 and 7 alone; `mean` would count the mask.
    torch.testing.assert_close(with_mask_D, ranker.enhancer.views(torch.tensor([[0, 3, 7]]), users)[0][0, 2])
    assert not attention_mask("full", hidden_BT > 0)[0, :, 1].any()
