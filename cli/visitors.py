"""Visitors of the demo's own, so that its tables of served requests, outcomes and an experiment are not empty.

The real application answers real requests, in this process. Every request id begins with `demo-`. Half of the users
get the release before this one, in an experiment called `demo` that ends with the last visitor. Clicks are drawn
by lot, with the same chances for both sides: they show what the tables look like, not which release is better.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow.dataset as ds
import pyarrow.parquet as pq
from starlette.testclient import TestClient

from grasp import partitions, tables
from grasp.manifest import manifest_in_force
from grasp.settings import Settings
from grasp.versions import Versions
from serving.http.app import LOCAL_HOSTS, create_app
from serving.http.service import OpenUserStore
from serving.lookup.online_store import FeastUserStore
from serving.releases.buckets import read_experiment
from serving.releases.in_force import rollback_targets
from serving.rollout import experiment

MARK, EXPERIMENT = "demo-", "demo"  # of the request ids; name of the experiment
NUM_USERS, NUM_SHOWN = 150, 10
CLICK_CHANCE, PURCHASE_CHANCE = 0.3, 0.2  # of an answer to be clicked, of a click to become a purchase
PLACE_DECAY = 0.5  # higher places are clicked more often

Outcomes = list[dict[str, str]]


def visit(settings: Settings, day: str, open_user_store: OpenUserStore = FeastUserStore) -> None:
    """Let some users of the day and two unknown visitors ask, once.

    Nobody asks where requests are not logged, or while somebody else's experiment runs.
    """
    running = read_experiment(settings.releases)
    if running and running.name == EXPERIMENT:  # a demo was killed before it could stop it
        experiment.stop(settings)
    if not settings.log_requests or read_experiment(settings.releases) or num_visits(settings):
        return
    release, lot = manifest_in_force(settings.releases).release_id, random.Random(0)  # noqa: S311 - no secret
    asked: list[tuple[str, list[str]]] = [(user, []) for user in _some_users(settings, day)]
    asked += [(f"{MARK}newcomer", []), (f"{MARK}visitor", _popular_items(settings, day))]
    app = create_app(settings, open_user_store)
    with _running_experiment(settings, release), TestClient(app, f"http://{LOCAL_HOSTS[0]}") as client:
        for number, (user, recent_items) in enumerate(asked):
            body = {"user_id": user, "k": NUM_SHOWN, "recent_item_ids": recent_items}
            headers = {"X-Request-ID": f"{MARK}{release}-{number:03d}"}
            answer = client.post("/v1/recommendations", json=body, headers=headers).raise_for_status().json()
            outcomes = draw_outcomes(answer["request_id"], [item["item_id"] for item in answer["items"]], lot)
            if outcomes:
                client.post("/v1/outcomes", json={"outcomes": outcomes}).raise_for_status()


def draw_outcomes(request_id: str, item_ids: Sequence[str], lot: random.Random) -> Outcomes:
    """At most one click, on an item near the top, and then perhaps a purchase."""
    place = int(lot.expovariate(PLACE_DECAY))
    if lot.random() >= CLICK_CHANCE or place >= len(item_ids):
        return []
    kinds = ("click", "purchase") if lot.random() < PURCHASE_CHANCE else ("click",)
    return [{"request_id": request_id, "item_id": item_ids[place], "kind": kind} for kind in kinds]


def num_visits(settings: Settings) -> int:
    """How many answers to the demo's visitors there are."""
    return sum(each.startswith(MARK) for each in _column(settings, tables.SERVED_REQUESTS, "request_id"))


def num_outcomes(settings: Settings) -> int:
    """How many of their clicks and purchases there are."""
    return sum(each.startswith(MARK) for each in _column(settings, tables.OUTCOMES, "request_id"))


def _column(settings: Settings, table: tables.Table, name: str) -> list[str]:
    folder = partitions.table_path(settings.lake, table, None)
    if not folder.exists():
        return []
    return ds.dataset(folder, format="parquet").to_table(columns=[name])[name].to_pylist()


def _some_users(settings: Settings, day: str) -> list[str]:
    """Users with features of the day, evenly over the alphabet."""
    partition = partitions.require_partition(settings.lake, tables.USER_FEATURES, Versions(settings).feature, day)
    users = sorted(pq.read_table(partition, columns=["user_id"], partitioning=None)["user_id"].to_pylist())
    return users[:: max(1, len(users) // NUM_USERS)][:NUM_USERS]


def _popular_items(settings: Settings, day: str) -> list[str]:
    """What a visitor without a history looks at: three popular items."""
    partition = partitions.require_partition(settings.lake, tables.ITEM_FEATURES, Versions(settings).feature, day)
    items = pq.read_table(partition, columns=["item_id", "popularity"], partitioning=None)
    return items.sort_by([("popularity", "descending"), ("item_id", "ascending")])["item_id"].to_pylist()[:3]


@contextmanager
def _running_experiment(settings: Settings, in_force: str) -> Iterator[None]:
    """The release before the one in force for half of the users; no experiment where there is only one release."""
    before = rollback_targets(settings.releases, in_force)[-1:]
    if not before:
        yield
        return
    experiment.start(settings, EXPERIMENT, before[0].release_id, 0.5)
    try:
        yield
    finally:
        experiment.stop(settings)
