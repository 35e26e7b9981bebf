"""The ranker's benchmark measures what it says, in small."""

from benchmarks.serving.ranker_cost import _untrained, added_costs
from benchmarks.serving.report import FIGURES
from training.fitting.recipes import DEFAULT


def test_added_cost_has_a_figure_for_every_goal():
    added = added_costs(rounds=2, requests=3, num_items=600)

    assert added["share"] > 0 and added["backbone_p50"] > 0
    assert (added["width"], added["as_served"]["width"]) == (64, 128)
    assert all(value_of(added) is not None for _, kind, value_of in FIGURES.values() if kind == "added")


def test_backbone_and_grasp_are_equally_wide():
    assert {_untrained(name, 50, 32).config.width for name in ("sasrec", DEFAULT)} == {32}
