"""Follows docs/adding-a-model.md to the letter: adds its class and line, and trains its recipe for two epochs."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from grasp.settings import ROOT
from training.data.training_set import TrainingSet
from training.fitting.recipes import plain
from training.fitting.training_loop import FittedRanker, fit
from training.model.enhancers import ENHANCERS

PAGE = ROOT / "docs" / "adding-a-model.md"
SEQUENCES = [[1, 2, 3, 4, 5], [2, 3, 1], [4, 5, 6], [6, 1, 2, 3]]
SMALL = {"width": 4, "num_blocks": 1, "max_length": 5}


def blocks() -> tuple[str, str]:
    """The class of the page and the line that registers it."""
    module, line = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return module, line


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> str:
    """Do what the page says; returns the enhancer's name."""
    module, line = blocks()
    registered = dict(ENHANCERS)
    names: dict[str, object] = {"ENHANCERS": registered}
    exec(module + line, names)  # noqa: S102 - the page is ours
    (name,) = registered.keys() - ENHANCERS.keys()
    monkeypatch.setitem(ENHANCERS, name, registered[name])
    return name


def training_set() -> TrainingSet:
    random = np.random.default_rng(0)
    items, users = (random.normal(size=(2, num, 8)).astype(np.float32) for num in (6, 4))
    return TrainingSet(
        item_ids=list("abcdef"),
        item_semantic=items[0],
        item_neighbour=items[1],
        popularity=np.ones(6, int),
        item_is_tail=np.zeros(6, bool),
        user_ids=list("uvwx"),
        user_semantic=users[0],
        user_neighbour=users[1],
        user_is_tail=np.zeros(4, bool),
        sequences=[np.array(items) for items in SEQUENCES],
        splits=[np.array(["train"] * (len(items) - 1) + ["validation"]) for items in SEQUENCES],
        days=[np.arange(len(items)) for items in SEQUENCES],
    )


def fitted_with(name: str, backbone: str) -> FittedRanker:
    config = replace(plain(backbone, name), max_epochs=2, batch_size=2, shortest_piece=2).with_switches(**SMALL)
    return fit(training_set(), config, 0, lambda *_: None)


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec"])
def test_the_class_of_the_page_is_fitted_over_every_backbone(followed, backbone):
    fitted = fitted_with(followed, backbone)

    assert fitted.num_epochs == 2
    assert fitted.metrics["hr@20"] == 1  # six items, all ranked
    assert all(weights.isfinite().all() for weights in fitted.ranker.state_dict().values())
    assert type(fitted.ranker.enhancer).__module__ != "training.model.enhancers.id_embeddings"


def test_it_keeps_the_rules_that_the_page_states(followed):
    ranker = fitted_with(followed, "sasrec").ranker
    users_BS, items_BT = torch.zeros(1, 8), torch.tensor([[0, 3, 1, 2]])
    changed_BT = torch.tensor([[0, 3, 1, 5]])

    state_BTD, later_BTD = ranker(items_BT, users_BS, users_BS), ranker(changed_BT, users_BS, users_BS)

    torch.testing.assert_close(later_BTD[:, :3], state_BTD[:, :3])
    torch.testing.assert_close(ranker(items_BT[:, 1:], users_BS, users_BS), state_BTD[:, 1:])
    assert ranker.candidate_vectors()[0].eq(0).all()
    assert not any("semantic" in key for key in ranker.state_dict())


def test_it_scores_an_item_that_is_newer_than_the_model(followed):
    ranker = fitted_with(followed, "sasrec").ranker
    vectors_NS = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    ranker.attach_items(vectors_NS, vectors_NS)

    assert ranker.candidate_vectors()[7].any()


def test_the_methods_the_page_names_are_those_of_the_class_it_starts_from():
    named = re.findall(r"^\| `(\w+)\(([^)]*)\)`", PAGE.read_text(), re.MULTILINE)

    for method, arguments in named:
        code = getattr(ENHANCERS["none"], method).__code__
        assert arguments.split(", ") == list(code.co_varnames[1 : code.co_argcount]), method
    assert len(named) == 5
