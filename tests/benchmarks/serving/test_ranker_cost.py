"""The ranker's benchmark measures what it says, in small."""

from benchmarks.serving.ranker_cost import _untrained, added_costs, large_catalogue, made_up_factors
from benchmarks.serving.report import FIGURES
from training.fitting.recipes import DEFAULT


def test_added_cost_and_large_catalogue_have_a_figure_for_every_goal():
    added = added_costs(rounds=2, requests=3, num_items=600)
    large = large_catalogue(made_up_factors(16, num_states=3), 6000, rounds=1)

    assert added["share"] > 0 and added["backbone_p50"] > 0
    assert (added["width"], added["as_served"]["width"]) == (64, 128)
    assert (large["recall"] > 0.9, large["width"]) == (True, 16)
    assert large["index_mib"] == 6000 * 8 / 2**20
    found = {"added": added, "million": large}
    assert all(value_of(found[kind]) is not None for _, kind, value_of in FIGURES.values() if kind in found)


def test_backbone_and_grasp_are_equally_wide():
    assert {_untrained(name, 50, 32).config.width for name in ("sasrec", DEFAULT)} == {32}
