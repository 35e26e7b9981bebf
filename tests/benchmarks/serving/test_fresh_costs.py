"""What fresh features cost is measured with the code that serves."""

from benchmarks.serving import fresh_costs
from benchmarks.serving.report import FIGURES


def test_every_part_takes_time(monkeypatch):
    monkeypatch.setattr(fresh_costs, "NUM_ITEMS", 300)
    monkeypatch.setattr(fresh_costs, "NUM_SHOP_MOMENTS", 200)

    found = fresh_costs.fresh_costs(rounds=2, requests=3, num_moments=500)

    for name, (_, kind, value_of) in FIGURES.items():
        if kind == "fresh":
            assert value_of(found) > 0, name
    assert found["backbone_p50"] > 0
    assert found["added_p50"] > found["added_by_fresh_p50"] > found["added_by_search_p50"] > 0
    assert (found["num_moments"], found["num_shop_moments"], found["num_items"]) == (500, 200, 300)
