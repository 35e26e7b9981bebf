from dataclasses import replace

import pytest
import torch

from training.fitting.recipes import DEFAULT, RECIPES, TrainConfig, recipe
from training.fitting.training_loop import fit
from training.model.config import RankerConfig
from training.model.enhancers import ENHANCERS

BACKBONES = ("sasrec", "gru4rec", "bert4rec")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_describes_a_ranker_of_its_name(name):
    config = recipe(name)
    ranker = RankerConfig(10, 384, config.backbone, enhancer=config.enhancer, **dict(config.ranker))

    assert config.name == name
    assert name.startswith(config.backbone)
    assert ranker.variant == ("legacy" if name.endswith("_legacy") else "strong")
    if name.endswith("_legacy"):  # as in LLM-ESR's scripts
        assert (ranker.max_length, ranker.dropout, config.loss, config.batch_size) == (200, 0.5, "bce", 128)
        assert (config.patience, config.selection) == (20, "sampled")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_runs_and_the_same_seed_gives_the_same_weights(training_set, tiny, name):
    seen = []
    first = fit(training_set, tiny(name), 0, lambda epoch, found: seen.append((epoch, found["loss"])))
    second = fit(training_set, tiny(name), 0, lambda *_: None)

    assert [epoch for epoch, _ in seen] == [1, 2]
    assert all(0 < loss < 100 for _, loss in seen)
    assert first.metrics == second.metrics
    for key, weights in first.ranker.state_dict().items():
        assert torch.equal(weights, second.ranker.state_dict()[key]), key
        assert weights.isfinite().all(), key


def test_every_enhancer_has_a_recipe_over_every_backbone():
    expected = {name if enhancer == "none" else f"{name}_{enhancer}" for name in BACKBONES for enhancer in ENHANCERS}

    assert expected <= set(RECIPES)
    assert {f"{backbone}_legacy" for backbone in BACKBONES} <= set(RECIPES)
    assert DEFAULT in RECIPES


def test_grasp_is_the_same_over_every_backbone_and_reads_no_description_of_the_user():
    first, *others = (replace(recipe(f"{backbone}_grasp"), name="", backbone="sasrec") for backbone in BACKBONES)

    assert others == [first, first]
    assert dict(first.ranker)["user_text"] == "mean_of_prefix_items"
    assert dict(first.ranker)["kernel_length"] > 0
    assert recipe(DEFAULT) == recipe("sasrec_grasp")


def test_the_described_recipe_differs_only_in_the_query():
    described = recipe("sasrec_grasp_described")

    assert described.with_switches(user_text="mean_of_prefix_items") == replace(
        recipe("sasrec_grasp"), name="sasrec_grasp_described"
    )
    assert dict(described.ranker)["user_text"] == "described"


def test_a_recipe_that_does_not_exist_names_those_that_do():
    with pytest.raises(ValueError, match=r"no recipe 'sasrec_llm'; there are .*sasrec_llm_esr"):
        recipe("sasrec_llm")


def test_switches_add_up_and_the_later_one_counts():
    config = TrainConfig("x").with_switches(width=8, mode="gate").with_switches(width=16)

    assert dict(config.ranker) == {"width": 16, "mode": "gate"}
