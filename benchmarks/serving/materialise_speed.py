"""How fast a day of features goes online, ours against Feast's own way, on one Redis.

    python -m benchmarks.serving.materialise_speed [--users 10000] [--rounds 3]

Each round writes a new day of as many users, at real widths, three times: by `feature_repo.materialise`, which also
asks for newer rows before and reads every row back after; by `FeatureStore.materialize` with Feast's Redis store as it
comes; and by the same with `skip_dedup`, which leaves out its look at what is there. Each has a database of its own on
the same server and takes turns in going first.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.core.redis_server import production_without_spark, redis_server
from benchmarks.data.made_up_features import write_day
from feature_repo.materialise import VIEWS, materialise, open_for_writing
from grasp.days import end_of, plus_days, start_of
from grasp.settings import Settings
from grasp.versions import Versions

if TYPE_CHECKING:
    from feast import FeatureStore

FIRST_DAY = "2026-01-05"
NUM_WARM_UP_ROWS = 100
OURS = "ours"


def compare(settings: Settings, num_users: int, num_rounds: int) -> dict[str, Any]:
    """Seconds of each round and the median of rows per second, by name."""
    with tempfile.TemporaryDirectory(dir=settings.home) as home, redis_server(Path(home)) as address:
        at = settings.model_copy(update={"lake": Path(home) / "lake"})
        ways = _ways(at, Path(home), address)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(num_rounds + 1):  # the first, a small one, pays for imports and registration
            day = plus_days(FIRST_DAY, number)
            num = num_users if number else NUM_WARM_UP_ROWS
            write_day(at, day, num, num // 10)
            names = list(ways)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                started = time.perf_counter()
                ways[name](day)
                if number:
                    seconds[name].append(time.perf_counter() - started)
    num_rows = num_users + num_users // 10
    medians = {name: num_rows / statistics.median(each) for name, each in seconds.items()}
    rivals = [rate for name, rate in medians.items() if name != OURS]
    return {
        "num_rows": num_rows,
        "seconds": seconds,
        "rows_per_second": medians,
        "times_the_fastest_of_feast": medians[OURS] / max(rivals),
    }


def _ways(settings: Settings, home: Path, address: str) -> dict[str, Callable[[str], object]]:
    """By name, what puts a day online in a home and a Redis database of its own."""
    version = Versions(settings).feature
    stores = {}
    for number, (name, skip_dedup) in enumerate(
        ((OURS, True), ("feast, as it comes", False), ("feast, skip_dedup", True))
    ):
        place = home / f"home-{number}"
        place.mkdir()
        online = {"type": "redis", "connection_string": "${GRASP_REDIS}", "skip_dedup": skip_dedup}
        yaml = production_without_spark(place / "store.yaml", online_store=online)
        changed = {"home": place, "redis": f"{address},db={number}", "feature_store_yaml": yaml}
        stores[name] = settings.model_copy(update=changed)
    ours = stores.pop(OURS)
    feasts = {name: _by_feast(open_for_writing(at, version, apply=True)) for name, at in stores.items()}
    # By the clock of each day's end: a day of long ago would be refused as too old to serve.
    return {OURS: lambda day: materialise(ours.model_copy(update={"now": end_of(day)}), version, day), **feasts}


def _by_feast(store: "FeatureStore") -> Callable[[str], object]:
    views = [table.name for table in VIEWS]
    return lambda day: store.materialize(start_of(day), end_of(day), feature_views=views)


def main() -> None:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.materialise_speed", description=summary)
    parser.add_argument("--users", type=int, default=10_000, help="of a day; a tenth as many items beside them")
    parser.add_argument("--rounds", type=int, default=3, help="days that are put online in each way")
    arguments = parser.parse_args()
    print(json.dumps(compare(Settings.load(), arguments.users, arguments.rounds), indent=1))


if __name__ == "__main__":
    main()
