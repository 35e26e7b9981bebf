import copy
import math

import pytest
import torch

from training.model.config import MASK, RankerConfig
from training.model.ranker import Ranker

ITEMS_BT = torch.tensor([[0, 3, 1, 7, 2], [5, 4, 9, 12, 6]])
USERS_BS = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("user_text", ["described", "mean_of_prefix_items"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("mode", ["prefix", "gate", "cross"])
@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_changing_a_later_item_changes_no_earlier_state(make_ranker, backbone, mode, activation, user_text):
    ranker = make_ranker(backbone=backbone, mode=mode, activation=activation, user_text=user_text)
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = 11

    before = ranker(ITEMS_BT, USERS_BS, USERS_BS)
    after = ranker(changed_BT, USERS_BS, USERS_BS)

    assert ranker.config.is_causal
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    assert not torch.allclose(after[:, -1], before[:, -1])


@pytest.mark.parametrize("changed", [{"mode": "full"}, {"backbone": "bert4rec"}])
def test_a_ranker_that_sees_later_items_says_so(make_ranker, changed):
    ranker = make_ranker(**changed)
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = 11

    same = torch.allclose(ranker(changed_BT, USERS_BS, USERS_BS)[:, :-1], ranker(ITEMS_BT, USERS_BS, USERS_BS)[:, :-1])

    assert not same
    assert not ranker.config.is_causal


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("mode", ["prefix", "full", "gate", "cross"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_padding_has_no_effect(make_ranker, backbone, mode, activation):
    ranker = make_ranker(backbone=backbone, mode=mode, activation=activation, normalise="mean")
    short_BT, padded_BT = torch.tensor([[3, 1]]), torch.tensor([[0, 0, 0, 3, 1]])

    plain = ranker.last_state(short_BT, USERS_BS[:1], USERS_BS[1:])
    padded = ranker.last_state(padded_BT, USERS_BS[:1], USERS_BS[1:])

    torch.testing.assert_close(padded, plain)
    assert ranker.candidate_vectors()[0].eq(0).all()


def test_an_empty_history_still_has_a_finite_state(make_ranker):
    for activation in ("sigmoid", "softmax"):
        ranker = make_ranker(activation=activation)
        assert ranker.last_state(torch.zeros(1, 3, dtype=torch.long), USERS_BS[:1], USERS_BS[:1]).isfinite().all()


@pytest.mark.parametrize("item_representation", ["sem", "sem+id", "dual"])
def test_every_representation_of_items_can_overfit_one_batch(item_representation):
    torch.manual_seed(0)
    ranker = Ranker(RankerConfig(12, 10, width=8, dropout=0.0, item_representation=item_representation))
    ranker.attach_items(torch.randn(12, 10), torch.randn(12, 10))
    optimiser = torch.optim.Adam(ranker.parameters(), 0.01)
    target_B = torch.tensor([8, 1])
    for _ in range(60):
        logits = ranker.last_state(ITEMS_BT, USERS_BS, USERS_BS) @ ranker.candidate_vectors()[1:].T
        loss = torch.nn.functional.cross_entropy(logits, target_B - 1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert loss.item() < 0.05
    assert ranker.enhancer.item.weight[0].eq(0).all()


@pytest.mark.parametrize("switch", ["use_attention", "use_similar", "use_global"])
def test_with_each_switch_off_a_ranker_stays_causal(make_ranker, switch):
    ranker = make_ranker(**{switch: False})
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = 11

    torch.testing.assert_close(
        ranker(changed_BT, USERS_BS, USERS_BS)[:, :-1], ranker(ITEMS_BT, USERS_BS, USERS_BS)[:, :-1]
    )


def test_without_attention_queries_have_no_effect(make_ranker):
    asking, silent = make_ranker(), make_ranker(use_attention=False)

    assert not torch.allclose(asking(ITEMS_BT, -USERS_BS, -USERS_BS), asking(ITEMS_BT, USERS_BS, USERS_BS))
    torch.testing.assert_close(silent(ITEMS_BT, -USERS_BS, -USERS_BS), silent(ITEMS_BT, USERS_BS, USERS_BS))
    assert not torch.allclose(silent(ITEMS_BT, USERS_BS, USERS_BS), asking(ITEMS_BT, USERS_BS, USERS_BS))


MLP, CANDIDATE = "enhancer.holistic_attention.mlp.0.weight", "enhancer.candidate.0.weight"


@pytest.mark.parametrize(
    ("switch", "num_inputs"),
    [
        ("use_global", {MLP: 3}),
        ("use_similar", {MLP: 2, CANDIDATE: 1}),
    ],  # number of inputs left of [I, Z_self, Z_sim, Z_glob]
)
def test_switching_a_level_off_equals_a_zero_result(make_ranker, switch, num_inputs):
    whole = make_ranker(use_global=switch == "use_global")
    switched = make_ranker(**{"use_global": False, switch: False})
    weights, own = whole.state_dict(), switched.state_dict()
    for name in own:
        if name in num_inputs:
            own[name] = weights[name][:, : 8 * num_inputs[name]]
        elif not name.endswith("global_query.weight"):  # it is unused
            own[name] = weights[name]
    switched.load_state_dict(own)
    state_BTD, candidate_ND = switched(ITEMS_BT, USERS_BS, USERS_BS), switched.candidate_vectors()

    assert not torch.allclose(whole(ITEMS_BT, USERS_BS, USERS_BS), state_BTD)
    with torch.no_grad():
        for name, num in num_inputs.items():
            whole.get_parameter(name)[:, 8 * num :] = 0
    torch.testing.assert_close(whole(ITEMS_BT, USERS_BS, USERS_BS), state_BTD)
    torch.testing.assert_close(whole.candidate_vectors(), candidate_ND)


def test_without_similar_nothing_depends_on_neighbours(make_ranker, item_vectors):
    ranker = make_ranker(use_similar=False)
    state, candidates = ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidate_vectors()

    ranker.attach_items(item_vectors(12)[0], torch.zeros(12, 10))

    torch.testing.assert_close(ranker(ITEMS_BT, USERS_BS, torch.zeros(2, 10)), state)
    torch.testing.assert_close(ranker.candidate_vectors(), candidates)
    with_similar = make_ranker()
    state = with_similar(ITEMS_BT, USERS_BS, USERS_BS)
    assert not torch.allclose(with_similar(ITEMS_BT, USERS_BS, torch.zeros(2, 10)), state)


def test_the_mean_of_prefix_items_needs_no_user_vectors(make_ranker):
    ranker = make_ranker(user_text="mean_of_prefix_items")
    torch.testing.assert_close(ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker(ITEMS_BT, USERS_BS * 0, USERS_BS * 0))


def test_training_and_cached_inference_give_the_same_state(make_ranker):
    ranker = make_ranker()
    in_evaluation = ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidate_vectors()
    ranker.train()
    torch.testing.assert_close((ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidate_vectors()), in_evaluation)


def test_loading_weights_clears_the_cache_of_a_copy(make_ranker):
    copied, other = copy.deepcopy(make_ranker()), make_ranker()
    before_ND = copied.candidate_vectors()
    torch.nn.init.normal_(other.enhancer.item_adapter.map.weight)

    copied.load_state_dict(other.state_dict())

    torch.testing.assert_close(copied.candidate_vectors(), other.candidate_vectors())
    assert not torch.allclose(copied.candidate_vectors(), before_ND)


def test_an_item_newer_than_the_model_is_scored_by_its_meaning(make_ranker):
    ranker = make_ranker(num_attached=14)
    candidates = ranker.candidate_vectors()

    assert candidates.shape == (15, 8)
    torch.testing.assert_close(candidates[:13], make_ranker(num_attached=14).candidate_vectors(torch.arange(13)))
    assert not torch.allclose(candidates[13], candidates[14])
    assert ranker.last_state(torch.tensor([[3, 14]]), USERS_BS[:1], USERS_BS[:1]).isfinite().all()


def test_bert4rec_appends_a_mask_to_the_latest_items(make_ranker):
    ranker = make_ranker(backbone="bert4rec")
    asked_BT = torch.cat([ITEMS_BT, torch.full((2, 1), MASK)], 1)
    longer_BT = torch.cat([torch.tensor([[8], [8]]), ITEMS_BT], 1)

    expected = ranker(asked_BT, USERS_BS, USERS_BS)[:, -1]

    torch.testing.assert_close(ranker.last_state(ITEMS_BT, USERS_BS, USERS_BS), expected)
    # One more than max_length: the oldest is left out.
    torch.testing.assert_close(ranker.last_state(longer_BT[1:], USERS_BS[1:], USERS_BS[1:]), expected[1:])


@pytest.mark.parametrize("mode", ["prefix", "cross", "gate"])
def test_history_weights_are_positive_for_items_and_zero_for_padding(make_ranker, mode):
    ranker = make_ranker(mode=mode)
    weights_BT = ranker.history_weights(ITEMS_BT, USERS_BS, USERS_BS)

    assert weights_BT.shape == ITEMS_BT.shape
    reads_BT = ITEMS_BT != 0
    if mode == "gate":
        reads_BT[:, :-1] = False  # the last state reads only the last item
    assert torch.equal(weights_BT > 0, reads_BT)


def test_a_ranker_without_attention_has_no_history_weights(make_ranker):
    with pytest.raises(ValueError, match="no holistic attention"):
        make_ranker(enhancer="none").history_weights(ITEMS_BT, USERS_BS, USERS_BS)


def test_vectors_of_a_large_encoder_are_accepted(make_ranker):
    ranker = make_ranker(semantic_size=1536)
    state_BD = ranker.last_state(ITEMS_BT, torch.randn(2, 1536), torch.randn(2, 1536))
    assert (state_BD @ ranker.candidate_vectors().T).shape == (2, 13)


@pytest.mark.parametrize(
    ("semantic", "neighbour", "message"),
    [
        (torch.ones(12, 5), torch.ones(12, 10), "semantic item vectors .* need 10 columns"),
        (torch.ones(11, 10), torch.ones(11, 10), "the model knows 12 items"),
        (torch.ones(12, 10), torch.ones(13, 10), "13 neighbour item vectors"),
        (torch.ones(12, 10), torch.full((12, 10), math.nan), "neighbour item vectors hold values that are not finite"),
    ],
)
def test_invalid_item_vectors_are_refused(make_ranker, semantic, neighbour, message):
    with pytest.raises(ValueError, match=message):
        make_ranker().attach_items(semantic, neighbour)
