"""A tiny lake with one or two days, an untrained ranker, and users in a dictionary."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from grasp import partitions, tables
from grasp.days import end_of, start_of
from grasp.partitions import Content
from grasp.settings import Settings
from grasp.versions import Versions, feature_service
from serving.lookup.online_store import StoreError, UserRow, UserStore

DAY, NEXT_DAY = "1998-03-01", "1998-03-02"
ITEM_IDS = [f"i{number}" for number in range(1, 9)]
SIZE = 6


def unit_rows(num: int, size: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def item_table(
    item_ids: list[str], version: str, size: int = SIZE, mark: str = "Title", titles: dict[str, str] | None = None
) -> pa.Table:
    """Item i1 has most users; vectors are random but the same for every call."""
    vectors = unit_rows(len(item_ids), size)
    return pa.table(
        {
            "item_id": item_ids,
            "title": [(titles or {}).get(item_id, f"{mark} {item_id}") for item_id in item_ids],
            "popularity": pa.array(range(len(item_ids) * 10, 0, -10), pa.int64()),
            **{f"takers_{days}d": pa.array([0] * len(item_ids), pa.int64()) for days in tables.TAKER_DAYS},
            "first_seen_day": [DAY] * len(item_ids),
            "semantic_embedding": pa.array(list(vectors), pa.list_(pa.float32())),
            "neighbour_embedding": pa.array(list(np.roll(vectors, 1, 0)), pa.list_(pa.float32())),
            "neighbour_ids": [[item_ids[row - 1]] for row in range(len(item_ids))],
            "neighbour_similarities": pa.array([[0.5]] * len(item_ids), pa.list_(pa.float32())),
            "description": [f"about {item_id}" for item_id in item_ids],
            "source": ["llm"] + ["facts"] * (len(item_ids) - 1),
            "is_tail": pa.array([0] * (len(item_ids) - 1) + [1], pa.int64()),
            "feature_version": [version] * len(item_ids),
        }
    )


def with_takers(items: pa.Table, takers: Mapping[str, Sequence[int]]) -> pa.Table:
    """The takers of the last 1, 3, 7, 14 and 30 days, by item; 0 for the others."""
    for place, days in enumerate(tables.TAKER_DAYS):
        counted = [takers[each][place] if each in takers else 0 for each in items["item_id"].to_pylist()]
        column = items.column_names.index(f"takers_{days}d")
        items = items.set_column(column, f"takers_{days}d", pa.array(counted, pa.int64()))
    return items


def moments_of(day: str, moments: Sequence[tuple[str, str, Sequence[str]]]) -> pa.Table:
    """Moments of a day, a second apart: who, the item taken, the items before it, newest first."""
    user_ids, item_ids, histories = zip(*moments, strict=True) if moments else ((), (), ())
    times = [start_of(day) + timedelta(seconds=place) for place in range(len(moments))]
    return pa.table(
        {
            "user_id": pa.array(user_ids, pa.string()),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "row_number": pa.array(range(len(moments)), pa.int64()),
            "item_id": pa.array(item_ids, pa.string()),
            "history_item_ids": pa.array([list(each) for each in histories], pa.list_(pa.string())),
        }
    )


@pytest.fixture
def moment_table() -> Callable[..., pa.Table]:
    """`moment_table(DAY, [("u1", "i3", ["i1"])])`: a day's rows of `moments`."""
    return moments_of


def write_partition(settings: Settings, table: Any, day: str, rows: pa.Table) -> None:
    folder = partitions.partition_path(settings.lake, table, Versions(settings).of(table.versioned_by), day)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part-0.parquet").unlink(missing_ok=True)  # replaced, as the lake does: a release may share the file
    pq.write_table(rows, folder / "part-0.parquet")
    partitions.write_content(folder, Content(rows.num_rows, f"{rows.num_rows}:test"))


@pytest.fixture
def write_day() -> Callable[..., None]:
    """`write_day(settings, DAY)`: the tables of a day that a publication looks at."""

    def write(
        settings: Settings,
        day: str = DAY,
        item_ids: list[str] = ITEM_IDS,
        size: int = SIZE,
        mark: str = "Title",
        withdrawn: Sequence[str] = (),
        titles: dict[str, str] | None = None,
        takers: Mapping[str, Sequence[int]] | None = None,
        moments: Sequence[tuple[str, str, Sequence[str]]] | None = None,
    ) -> None:
        items = with_takers(item_table(item_ids, Versions(settings).feature, size, mark, titles), takers or {})
        write_partition(settings, tables.ITEM_FEATURES, day, items)
        if moments is not None:
            write_partition(settings, tables.MOMENTS, day, moments_of(day, moments))
        genres = [[("genre", "Drama" if row % 2 else "Comedy, War"), ("year", "1994")] for row in range(len(item_ids))]
        attributes = pa.array(genres, pa.map_(pa.string(), pa.string()))
        listed = items.select(["item_id", "title"]).append_column("attributes", attributes)
        write_partition(settings, tables.ITEMS, day, listed)
        gone = pa.table({"item_id": pa.array(withdrawn, pa.string()), "withdrawn_on": [day] * len(withdrawn)})
        write_partition(settings, tables.WITHDRAWN_ITEMS, day, gone)
        write_partition(settings, tables.USER_FEATURES, day, pa.table({"user_id": ["u1"], "num_interactions": [2]}))

    return write


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """`make_model(settings)`: the folder of a saved, untrained ranker over `ITEM_IDS`."""
    import torch

    from training.model.artefact import RankerMetadata, save_ranker
    from training.model.config import RankerConfig
    from training.model.ranker import Ranker

    def make(
        settings: Settings,
        name: str = "tiny-ranker",
        item_ids: list[str] = ITEM_IDS,
        version: str | None = None,
        takers_weights: Sequence[float] = (0, 0, 0, 0, 0),
        vote_weight: float = 0.0,
        state_vote_weight: float = 0.0,
        **config: Any,
    ) -> Path:
        """The weights are those of `FreshScore`."""
        version = version or Versions(settings).feature
        torch.manual_seed(1)
        ranker = Ranker(RankerConfig(**({"num_items": len(item_ids), "semantic_size": SIZE, "width": 8} | config)))
        ranker.fresh.takers_weight_W.copy_(torch.tensor(takers_weights))
        ranker.fresh.vote_weight.fill_(vote_weight)
        ranker.fresh.state_vote_weight.fill_(state_vote_weight)
        metadata = RankerMetadata(name, feature_service(version), version, "tiny", DAY, DAY, 1, {}, {})
        save_ranker(tmp_path / "models-trained" / name, ranker, item_ids, metadata)
        return tmp_path / "models-trained" / name

    return make


def make_user(user_id: str = "u1", size: int = SIZE) -> UserRow:
    vectors = unit_rows(2, size, seed=7)
    return UserRow(
        user_id=user_id,
        sequence=["i3", "i5"],
        sequence_times=[888_700_000, 888_800_000],
        earlier_item_ids=[],
        semantic_embedding=vectors[0],
        neighbour_embedding=vectors[1],
        neighbour_ids=["u2"],
        neighbour_similarities=np.array([0.5], np.float32),
        description="likes tests",
        source="facts",
        is_tail=False,
        num_interactions=2,
        gap_days=1,
        neighbour_item_ids=["i7", "i8"],
        neighbour_item_weights=np.array([0.5, 0.25], np.float32),
        event_timestamp=end_of(DAY),
        computed_at=datetime(1998, 3, 2, tzinfo=UTC),
    )


@dataclass
class FakeUserStore(UserStore):
    """Users in a dictionary; may be slow or broken."""

    users: dict[str, UserRow] = field(default_factory=dict)
    delay_seconds: float = 0.0
    is_broken: bool = False
    num_lookups: int = 0

    def rows(self, user_ids: Sequence[str]) -> list[UserRow | StoreError | None]:
        self.num_lookups += 1
        time.sleep(self.delay_seconds)
        if self.is_broken:
            raise StoreError("the online store did not answer: it is broken")
        return [self.users.get(user_id) for user_id in user_ids]


@pytest.fixture
def users() -> FakeUserStore:
    return FakeUserStore({"u1": make_user()})


@pytest.fixture
def publish_day(settings: Settings, write_day, make_model) -> Callable[..., str]:
    """`publish_day(DAY, model="tiny-ranker")`: publish a day with an untrained model, or None; returns its id.

    Every title begins with `mark`, except those given by item id.
    """
    from serving.releases.publication import choose_model, publish

    def put(
        day: str = DAY,
        model: str | None = "tiny-ranker",
        mark: str = "Title",
        titles: dict[str, str] | None = None,
        takers: Mapping[str, Sequence[int]] | None = None,
        moments: Sequence[tuple[str, str, Sequence[str]]] | None = None,
        withdrawn: Sequence[str] = (),
        item_ids: list[str] = ITEM_IDS,
        **changed: object,
    ) -> str:
        write_day(settings, day, item_ids, SIZE, mark, withdrawn, titles, takers, moments)
        source = make_model(settings, name=model, item_ids=item_ids, **changed) if model else None
        return publish(settings, day, choose_model(settings, source, None)).release_id

    return put


@pytest.fixture
def serve(settings_with, users) -> Iterator[Callable[..., TestClient]]:
    """`serve(max_feature_age_hours=1)`: a running application over the fake users.

    It looks for another release only when told: `client.app.state.service.check()`.
    """
    from serving.http.app import create_app

    clients = []

    def start(poll_seconds: float = 3600.0, access: Any = None, searcher: Any = None, **changed: object) -> TestClient:
        changed = {"lookup_timeout_ms": 2000, **changed}
        client = TestClient(
            create_app(settings_with(**changed), lambda *_: users, poll_seconds, access, searcher), "http://localhost"
        )
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def user() -> UserRow:
    return make_user()


@pytest.fixture
def decision(tmp_path: Path) -> Callable[..., Path]:
    def write(**content: Any) -> Path:
        file = tmp_path / "decision.json"
        file.write_text(json.dumps(content))
        return file

    return write


@pytest.fixture
def run_server() -> Iterator[Callable[..., int]]:
    """`run_server(app)`: the port of an application in a thread of its own, until the test ends."""
    running = []

    def run(app: FastAPI, **config: Any) -> int:
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", **config))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "the server ended before it began"
            time.sleep(0.02)
        return int(server.servers[0].sockets[0].getsockname()[1])

    yield run
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
