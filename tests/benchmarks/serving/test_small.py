"""The serving benchmark from end to end in small: a real Redis, the service in processes of its own, wrk."""

import hashlib
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.data import datasets
from benchmarks.serving import measure, release
from benchmarks.serving.measure import ServiceBenchmark
from grasp import partitions, tables
from grasp.manifest import release_folder
from grasp.versions import Versions

NUM_ITEMS, NUM_USERS, SIZE = 60, 40, 16


class HashEncoder:
    """Equal texts have equal vectors."""

    def encode(self, texts: list[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        raw = np.stack([np.random.default_rng(seed).normal(size=SIZE) for seed in seeds])
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def given(tmp_path: Path) -> Namespace:
    """The command's arguments for a folder of a few items and users, and for loads of a few seconds."""
    data = tmp_path / "small"
    data.mkdir()
    random = np.random.default_rng(0)
    items = [{"item_id": f"i{number}", "title": f'A "{number}"', "kinds": ["Tea"]} for number in range(NUM_ITEMS)]
    (data / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    rows = [
        f"u{user}\ti{item}\t{place}"
        for user in range(NUM_USERS)
        for place, item in enumerate(random.choice(NUM_ITEMS, 8, replace=False))
    ]
    (data / "interactions.tsv").write_text("\n".join(["user_id\titem_id\ttimestamp", *rows, ""]))
    given = measure.parser().parse_args(["--data", str(data), "--out", str(tmp_path / "out")])
    small = {"epochs": 1, "closed_seconds": 2.0, "switch_seconds": 45.0, "soak_minutes": 1.5}
    changed = {"data": data, "cache": tmp_path / "cache", "milvus": False}
    return Namespace(**(vars(given) | small | changed))


@pytest.fixture
def benchmark(settings_with, given) -> ServiceBenchmark:
    settings = settings_with(search=False)  # the tiny encoder's folder holds no weights
    data = datasets.load(given.data, cache=given.cache, settings=settings, open_encoder=lambda *_: HashEncoder())
    return ServiceBenchmark(settings, data, given)


def test_the_same_number_is_the_same_release_and_every_title_carries_it(settings, given):
    data = datasets.load(given.data, cache=given.cache, settings=settings, open_encoder=lambda *_: HashEncoder())
    at = release.settings_of(settings, settings.home / "place")
    content = release.release_content(given.data, data, given.cache, ())
    release.write_lake(at, content)
    model = release.train(at, content, num_epochs=1)

    first, second, again = (release.publish_marked(at, content, model, number) for number in (1, 2, 1))

    assert first == again != second
    for manifest, mark in ((first, "r1|"), (second, "r2|")):
        (file,) = (release_folder(at.releases, manifest) / "items").glob("*.parquet")
        titles = pq.read_table(file)["title"].to_pylist()
        assert len(titles) == NUM_ITEMS
        assert all(title.startswith(mark) for title in titles)
    place = partitions.partition_path(at.lake, tables.USER_FEATURES, Versions(at).feature, release.DAY)
    rows = pq.read_table(place / "part-0.parquet")
    assert rows.column_names == list(tables.USER_FEATURES.column_names)
    assert rows["sequence"][0].as_py() == [
        data.training_set.item_ids[item - 1] for item in data.training_set.sequences[0]
    ]
    assert release.train(at, content, num_epochs=1) == model


@pytest.mark.integration
@pytest.mark.timeout(1500)  # minutes of load, and three starts of the service on a machine that may be busy
def test_the_service_is_asked_switched_and_soaked(benchmark, require_program):
    require_program("wrk", "wrk")
    require_program("redis-server", "redis-server")

    found = benchmark.recommend()
    assert found["num_errors"] == 0
    assert found["num_answered"] > 10
    assert set(found["stage_milliseconds"]) >= {"lookup", "scoring"}

    found = benchmark.switch()
    assert (found["num_errors"], found["num_mixed"]) == (0, 0), found
    assert len(found["answers_by_release"]) == 3

    found = benchmark.soak(lambda: 20.0)
    assert (found["num_5xx"], found["num_untrue"]) == (0, 0), found
    assert found["corrupt_release_refused"]
    assert set(found["labels"]["features restored"]) >= {"none"}


@pytest.mark.integration
@pytest.mark.timeout(1500)
def test_the_command_makes_each_measurement_once_and_writes_what_they_say(settings_with, given, require_program):
    require_program("wrk", "wrk")
    require_program("redis-server", "redis-server")
    kinds = ("recommend", "open_loop")
    tiny = {"open_seconds": 2.0, "rate": 20.0}
    given = Namespace(**(vars(given) | tiny | {"only": kinds, "workers": 1, "command": "it"}))

    measure.measure(given, settings_with(search=False), lambda *_: HashEncoder())

    measured = (given.out / "measurements.jsonl").read_bytes()
    of_kind = {each["kind"]: each["found"] for each in map(json.loads, measured.splitlines())}
    assert list(of_kind) == list(kinds)
    found = json.loads((given.out / "summary.json").read_text())["figures"]
    assert found["open_loop_errors"]["value"] is None  # too small
    report = (given.out / "report.md").read_text()
    assert "## 20 requests a second" in report
    measure.measure(given, settings_with(search=False), lambda *_: HashEncoder())
    assert (given.out / "measurements.jsonl").read_bytes() == measured
