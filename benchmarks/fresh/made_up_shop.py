"""A made-up shop in the data contract, with folders by day: users who come back, and items some of which sell often.

Every day the same number of users is new. The other sessions are of users who joined before, recent ones more often. A
session has one item or more, three on average. The item of rank r is drawn in proportion to r ** (-2 / 3).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grasp.days import plus_days, start_of

ITEMS_A_SESSION = 3  # on average
SECONDS_BETWEEN = 30  # items of a session
LAST_START = 80_000  # second of the day at which a session may begin
KINDS = ("soap", "lamp", "scarf", "kettle", "notebook", "candle", "basket", "mirror", "cushion", "vase")
COLOURS = ("amber", "cobalt", "ivory", "jade", "ochre", "rose", "slate", "teal", "umber", "violet")


@dataclass(frozen=True)
class Size:
    num_users: int
    num_items: int
    num_days: int  # of history, the last day included
    num_a_day: int  # interactions


def write_items(folder: Path, size: Size) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = [KINDS[number % len(KINDS)] for number in range(size.num_items)]
    colours = [COLOURS[number // len(KINDS) % len(COLOURS)] for number in range(size.num_items)]
    columns = {
        "item_id": [f"i{number}" for number in range(size.num_items)],
        "title": [f"{colours[number]} {kinds[number]} {number}" for number in range(size.num_items)],
        "kind": kinds,
        "colour": colours,
    }
    pq.write_table(pa.table(columns), folder / "items.parquet")


def write_day(folder: Path, size: Size, number: int, last_day: str) -> int:
    """Write the interactions of the day that lies `num_days - 1 - number` days before the last; returns how many."""
    day = plus_days(last_day, number - size.num_days + 1)
    user, item, second = interactions(size, number)
    columns = {
        "user_id": [f"u{each}" for each in user.tolist()],
        "item_id": [f"i{each}" for each in item.tolist()],
        "timestamp": int(start_of(day).timestamp()) + second,
        "row_number": np.arange(len(user)),
    }
    target = folder / "interactions.parquet" / f"day={day}"
    target.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), target / "part-0.parquet")
    return len(user)


def interactions(size: Size, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items and seconds of the day with this number, from 0. The same for the same size and number."""
    random = np.random.default_rng(number)
    joined, joining = (size.num_users * each // size.num_days for each in (number, number + 1))
    num_back = max(0, size.num_a_day // ITEMS_A_SESSION - (joining - joined)) if joined else 0
    back = joined - 1 - (joined * random.random(num_back) ** 2).astype(np.int64)
    users = np.concatenate([np.arange(joined, joining), back])
    lengths = random.geometric(1 / ITEMS_A_SESSION, len(users))
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    second = np.repeat(random.integers(0, LAST_START, len(users)), lengths) + SECONDS_BETWEEN * place
    item = (size.num_items * random.random(len(place)) ** 3).astype(np.int64)
    return np.repeat(users, lengths), item, second
