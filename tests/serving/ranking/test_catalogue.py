"""The categories of a release, and what is said of one that it lacks."""

import numpy as np
import pyarrow as pa
import pytest

from serving.ranking.catalogue import NUM_COMPARED, Catalogue, UnknownCategoryError
from serving.ranking.items import ItemSide


def catalogue_of(num_items: dict[str, int]) -> Catalogue:
    """A catalogue whose items have one category each, by the categories' sizes."""
    category_of = {f"{name} {number}": name for name, num in num_items.items() for number in range(num)}
    ids = list(category_of)
    items = ItemSide(
        ids=ids,
        titles=ids,
        neighbour_ids=[[] for _ in ids],
        popularity_N=np.zeros(len(ids)),
        semantic_NS=np.zeros((len(ids), 1), np.float32),
        neighbour_NS=np.zeros((len(ids), 1), np.float32),
        available_N=np.ones(len(ids), dtype=bool),
        row_of={item_id: row for row, item_id in enumerate(ids)},
        copies_of={},
    )
    attributes = {item_id: [("genre", name)] for item_id, name in category_of.items()}
    return Catalogue(items, pa.table({"item_id": ids}), attributes)


def test_categories_are_ordered_once_the_largest_first():
    catalogue = catalogue_of({"War": 1, "Drama": 3, "Comedy": 1})

    assert catalogue.all_categories() == [("Drama", 3), ("Comedy", 1), ("War", 1)]
    assert catalogue.all_categories() is catalogue.all_categories()


@pytest.mark.parametrize(("num", "said"), [(3, "the closest is comedy"), (1, "the largest are brand 0, brand 1")])
def test_an_unknown_category_is_compared_with_the_largest_ones_alone(num, said):
    catalogue = catalogue_of({f"brand {number}": 2 for number in range(NUM_COMPARED)} | {"comedy": num})

    with pytest.raises(UnknownCategoryError, match=f"no category 'comdy'; {said}"):
        catalogue.in_categories(["comdy"])
