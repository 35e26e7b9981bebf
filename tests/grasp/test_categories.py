"""Names are categories, in any script; numbers, truth values, times, objects and long texts are not."""

import pytest

from grasp.categories import categories_of


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Comedy, Children's, Sci-Fi, 3D", ["Comedy", "Children's", "Sci-Fi", "3D"]),
        ("драма, 字, été", ["драма", "字", "été"]),
        ("false", []),
        ("True, garden", ["garden"]),
        ("1995, 12.50, 1e3, -2.5E-3, NaN, -Infinity", []),
        ("1998-03-01, 1998-03-01T10:00:00Z", []),
        ('{"w":1,"unit":"m"}', []),
        ('{"name":"a, b"}, {"name":"c"}', []),
        ("x" * 41, []),
        ("", []),
    ],
)
def test_only_names_are_categories(value, expected):
    assert categories_of(value) == expected
