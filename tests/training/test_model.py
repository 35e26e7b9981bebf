# ruff: noqa: N803 - shape suffixes as in training/model.py
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.model import MASK, Attention, Metadata, Ranker, RankerConfig, allowed, load_ranker, save_ranker

CONFIG = RankerConfig(num_items=12, semantic_size=6, width=8, max_length=5, num_blocks=1, dropout=0.0)
METADATA = Metadata(
    "sasrec-grasp-x", "ranker_v1", "v1", "sasrec_grasp", "1998-04-22", "1998-02-28", 0, {"ndcg@10": 0.1}
)
ITEMS_BT = torch.tensor([[0, 3, 1, 7, 2], [5, 4, 9, 12, 6]])
USERS_BS = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def make_ranker(num_attached: int = 12, **changed: object) -> Ranker:
    torch.manual_seed(0)
    config = replace(CONFIG, **changed)  # type: ignore[arg-type]
    ranker = Ranker(config).eval()
    for name, parameter in ranker.named_parameters():  # zero or tiny starts would hide what is wrong
        if name != "item.weight" and parameter.ndim < 2:
            torch.nn.init.normal_(parameter)
    random = torch.Generator().manual_seed(2)
    vectors = torch.randn(2, num_attached, config.semantic_size, generator=random)
    ranker.attach_items(vectors[0], vectors[1])
    return ranker


@pytest.mark.parametrize("user_text", ["described", "mean_of_prefix_items"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("mode", ["prefix", "gate", "cross"])
@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_changing_a_later_item_changes_no_earlier_state(backbone, mode, activation, user_text):
    ranker = make_ranker(backbone=backbone, mode=mode, activation=activation, user_text=user_text)
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = 11

    before = ranker(ITEMS_BT, USERS_BS, USERS_BS)
    after = ranker(changed_BT, USERS_BS, USERS_BS)

    assert ranker.config.is_causal
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    assert not torch.allclose(after[:, -1], before[:, -1])


@pytest.mark.parametrize("changed", [{"mode": "full"}, {"backbone": "bert4rec"}])
def test_a_ranker_that_sees_later_items_says_so(changed):
    ranker = make_ranker(**changed)
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = 11

    same = torch.allclose(ranker(changed_BT, USERS_BS, USERS_BS)[:, :-1], ranker(ITEMS_BT, USERS_BS, USERS_BS)[:, :-1])

    assert not same
    assert not ranker.config.is_causal


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("mode", ["prefix", "full", "gate", "cross"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_padding_is_inert(backbone, mode, activation):
    ranker = make_ranker(backbone=backbone, mode=mode, activation=activation, normalise="mean")
    short_BT, padded_BT = torch.tensor([[3, 1]]), torch.tensor([[0, 0, 0, 3, 1]])

    plain = ranker.last_state(short_BT, USERS_BS[:1], USERS_BS[1:])
    padded = ranker.last_state(padded_BT, USERS_BS[:1], USERS_BS[1:])

    torch.testing.assert_close(padded, plain)
    assert ranker.candidates()[0].eq(0).all()


def test_an_empty_history_still_has_a_finite_state():
    for activation in ("sigmoid", "softmax"):
        ranker = make_ranker(activation=activation)
        assert ranker.last_state(torch.zeros(1, 3, dtype=torch.long), USERS_BS[:1], USERS_BS[:1]).isfinite().all()


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
@pytest.mark.parametrize("enhancer", ["none", "grasp"])
@pytest.mark.parametrize("item_representation", ["sem", "sem+id", "dual"])
def test_one_batch_can_be_overfitted(backbone, enhancer, item_representation):
    torch.manual_seed(0)
    config = replace(CONFIG, backbone=backbone, enhancer=enhancer, item_representation=item_representation)
    ranker = Ranker(config)
    ranker.attach_items(torch.randn(12, 6), torch.randn(12, 6))
    optimiser = torch.optim.Adam(ranker.parameters(), 0.01)
    target_B = torch.tensor([8, 1])
    for _ in range(60):
        logits = ranker.last_state(ITEMS_BT, USERS_BS, USERS_BS) @ ranker.candidates()[1:].T
        loss = torch.nn.functional.cross_entropy(logits, target_B - 1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert loss.item() < 0.05
    assert ranker.item.weight[0].eq(0).all()


def naive_answer(attention: Attention, query_D, keys_TD, mask_T, step):
    """`Att` of one user and step as the equation reads, in a loop, for one head."""
    config = attention.config
    steps = [s for s in range(len(mask_T)) if mask_T[s] and (s == step if config.mode == "gate" else s <= step)]
    logits = [attention.query(query_D) @ attention.key(keys_TD[s]) / math.sqrt(8) + attention.bias for s in steps]
    if config.activation == "sigmoid":
        weights = [1 / (1 + torch.exp(-logit)) for logit in logits]
    else:
        weights = [torch.exp(logit) / sum(torch.exp(other) for other in logits) for logit in logits]
    if config.activation == "sigmoid" and config.normalise == "mean":
        weights = [weight / len(steps) for weight in weights]
    if config.activation == "softmax" and config.normalise == "sum":
        weights = [weight * len(steps) for weight in weights]
    total = sum((w * attention.value(keys_TD[s]) for w, s in zip(weights, steps, strict=True)), torch.zeros(8))
    return attention.output(total)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalise", ["sum", "mean"])
@pytest.mark.parametrize("mode", ["prefix", "gate"])
def test_attention_equals_the_equation_in_a_naive_loop(activation, normalise, mode):
    torch.manual_seed(0)
    attention = Attention(replace(CONFIG, activation=activation, normalise=normalise, mode=mode))
    query_BQD, keys_BTD = torch.randn(2, 1, 8), torch.randn(2, 5, 8)
    mask_BT = ITEMS_BT != 0

    actual = attention(query_BQD, keys_BTD[:, None], mask_BT)

    for user in range(2):
        for step in range(5):
            expected = naive_answer(attention, query_BQD[user, 0], keys_BTD[user], mask_BT[user], step)
            torch.testing.assert_close(actual[user, step], expected)


def test_the_running_sum_equals_the_weights_over_two_copies():
    torch.manual_seed(0)
    attention = Attention(replace(CONFIG, num_heads=2, normalise="mean"))
    query_BQD, keys_BCTD, mask_BT = torch.randn(2, 1, 8), torch.randn(2, 2, 5, 8), ITEMS_BT != 0

    weights = attention.weights(query_BQD, keys_BCTD, allowed("prefix", mask_BT))
    values = attention.value(keys_BCTD).unflatten(-1, (2, 4))
    expected = attention.output(torch.einsum("bhqct,bcthk->bqhk", weights, values).flatten(-2))

    torch.testing.assert_close(attention(query_BQD, keys_BCTD, mask_BT), expected)


def test_the_bias_starts_at_minus_log_length_or_zero():
    assert Attention(CONFIG).bias.item() == pytest.approx(-math.log(5))
    assert Attention(replace(CONFIG, sigmoid_bias="zero")).bias.item() == 0


@pytest.mark.parametrize("switch", ["use_attention", "use_similar", "use_global"])
def test_each_ablation_switch_changes_the_state_and_stays_causal(switch):
    ranker = make_ranker(**{switch: False})
    changed_BT = ITEMS_BT.clone()
    changed_BT[:, -1] = 11

    state = ranker(ITEMS_BT, USERS_BS, USERS_BS)

    assert not torch.allclose(state, make_ranker()(ITEMS_BT, USERS_BS, USERS_BS))
    torch.testing.assert_close(ranker(changed_BT, USERS_BS, USERS_BS)[:, :-1], state[:, :-1])


def test_without_similar_nothing_depends_on_neighbours():
    ranker = make_ranker(use_similar=False)
    state, candidates = ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidates()

    ranker.attach_items(ranker.semantic_NS[1:], torch.zeros(12, 6))

    torch.testing.assert_close(ranker(ITEMS_BT, USERS_BS, torch.zeros(2, 6)), state)
    torch.testing.assert_close(ranker.candidates(), candidates)


def test_the_mean_of_prefix_items_needs_no_user_vectors():
    ranker = make_ranker(user_text="mean_of_prefix_items")
    torch.testing.assert_close(ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker(ITEMS_BT, USERS_BS * 0, USERS_BS * 0))


def test_training_and_cached_inference_give_the_same_state():
    ranker = make_ranker()
    in_evaluation = ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidates()
    ranker.train()
    torch.testing.assert_close((ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker.candidates()), in_evaluation)


def test_an_item_newer_than_the_model_is_scored_by_its_meaning():
    ranker = make_ranker(num_attached=14)
    candidates = ranker.candidates()

    assert candidates.shape == (15, 8)
    torch.testing.assert_close(candidates[:13], make_ranker(num_attached=14).candidates(torch.arange(13)))
    assert not torch.allclose(candidates[13], candidates[14])
    assert ranker.last_state(torch.tensor([[3, 14]]), USERS_BS[:1], USERS_BS[:1]).isfinite().all()


def test_bert4rec_asks_with_a_mask_after_the_latest_items():
    ranker = make_ranker(backbone="bert4rec")
    asked_BT = torch.cat([ITEMS_BT, torch.full((2, 1), MASK)], 1)
    longer_BT = torch.cat([torch.tensor([[8], [8]]), ITEMS_BT], 1)

    expected = ranker(asked_BT, USERS_BS, USERS_BS)[:, -1]

    torch.testing.assert_close(ranker.last_state(ITEMS_BT, USERS_BS, USERS_BS), expected)
    # One more than max_length: the oldest is left out.
    torch.testing.assert_close(ranker.last_state(longer_BT[1:], USERS_BS[1:], USERS_BS[1:]), expected[1:])


@pytest.mark.parametrize("mode", ["prefix", "cross", "gate"])
def test_history_weights_are_positive_for_items_and_zero_for_padding(mode):
    ranker = make_ranker(mode=mode)
    weights_BT = ranker.history_weights(ITEMS_BT, USERS_BS, USERS_BS)

    assert weights_BT.shape == ITEMS_BT.shape
    assert torch.equal(weights_BT > 0, ITEMS_BT != 0)


def test_a_ranker_without_attention_has_no_history_weights():
    with pytest.raises(ValueError, match="no holistic attention"):
        make_ranker(enhancer="none").history_weights(ITEMS_BT, USERS_BS, USERS_BS)


def test_vectors_of_a_large_encoder_go_through():
    ranker = make_ranker(semantic_size=1536)
    state_BD = ranker.last_state(ITEMS_BT, torch.randn(2, 1536), torch.randn(2, 1536))
    assert (state_BD @ ranker.candidates().T).shape == (2, 13)


@pytest.mark.parametrize(
    ("semantic", "neighbour", "message"),
    [
        (torch.ones(12, 5), torch.ones(12, 6), "semantic item vectors .* need 6 columns"),
        (torch.ones(11, 6), torch.ones(11, 6), "the model knows 12 items"),
        (torch.ones(12, 6), torch.ones(13, 6), "13 neighbour item vectors"),
        (torch.ones(12, 6), torch.full((12, 6), math.nan), "neighbour item vectors hold values that are not finite"),
    ],
)
def test_unfit_item_vectors_are_refused(semantic, neighbour, message):
    with pytest.raises(ValueError, match=message):
        make_ranker().attach_items(semantic, neighbour)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "prefixed"}, "mode 'prefixed' is none of prefix, full, gate, cross"),
        ({"num_heads": 3}, "width 8 is not a multiple of num_heads 3"),
        ({"num_items": 0}, "must be positive"),
    ],
)
def test_a_config_that_describes_no_ranker_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changed)


def test_an_adapter_starts_with_outputs_of_unit_variance_around_zero():
    vectors_NS = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * 0.01 + 1.0
    adapter = Ranker(replace(CONFIG, width=4)).item_adapter
    adapter.start_from(vectors_NS)

    found_ND = adapter(vectors_NS)

    torch.testing.assert_close(found_ND.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(found_ND.std(0), torch.ones(4), atol=0.02, rtol=0)
    torch.testing.assert_close(found_ND, adapter.second(adapter.first(vectors_NS)), atol=1e-3, rtol=0)


def save(folder: Path, ranker: Ranker) -> Path:
    save_ranker(folder, ranker, [f"item {i}" for i in range(12)], METADATA)
    return folder


def test_what_is_saved_is_loaded(tmp_path):
    ranker = make_ranker()
    loaded = load_ranker(save(tmp_path / "model", ranker))
    loaded.ranker.attach_items(ranker.semantic_NS[1:], ranker.near_NS[1:])

    assert loaded.config == ranker.config
    assert loaded.metadata == METADATA
    assert loaded.vocabulary[11] == "item 11"
    assert torch.equal(loaded.ranker(ITEMS_BT, USERS_BS, USERS_BS), ranker(ITEMS_BT, USERS_BS, USERS_BS))
    assert torch.equal(loaded.ranker.candidates(), ranker.candidates())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json"])
def test_a_changed_or_missing_file_is_named(tmp_path, name):
    file = save(tmp_path, make_ranker()) / name
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"{name} does not match its checksum"):
        load_ranker(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_ranker(tmp_path)


def test_weights_of_another_shape_are_refused_though_their_checksum_fits(tmp_path):
    save(tmp_path / "a", make_ranker())
    save(tmp_path / "b", make_ranker(width=16))
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    checksums = [json.loads((tmp_path / name / "checksums.json").read_text()) for name in "ab"]
    mixed = checksums[0] | {"model.safetensors": checksums[1]["model.safetensors"]}
    (tmp_path / "a" / "checksums.json").write_text(json.dumps(mixed))

    with pytest.raises(ValueError, match=r"model\.safetensors does not fit config\.json"):
        load_ranker(tmp_path / "a")


def test_a_folder_without_checksums_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checksums\.json cannot be read"):
        load_ranker(tmp_path)


def test_a_vocabulary_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 2 distinct items, the config says 12"):
        save_ranker(tmp_path, make_ranker(), ["a", "b"], METADATA)
