"""What becomes of a day's descriptions when the model's server fails in every way it can.

A thousand items are described through Spark by a server of the tests that misbehaves as told: at first, or for good.
What is counted: of the items that met a fault which passes, how many end with the model's text; whether any answer was
paid for twice; whether everyone is described; whether the day stayed within its cap. A few more items are asked for at
a server whose certificate nobody trusts: facts describe them, with the reason, after one call each.
"""

import json
import random
import tempfile
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.core.sessions import local_spark
from benchmarks.generation.http_engine import running_server
from grasp import tables
from grasp.settings import Settings
from spark_jobs.generation.prompts import ITEM, item_input, messages

DAY = "2026-01-05"
FAULTY_SHARE = 0.6  # of the items
TRANSIENT: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 429, "retry_after": "1"},
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 500},
    {"kind": "hang"},
    {"kind": "trickle", "every": 1.0},
    {"kind": "truncated"},
    {"kind": "empty"},
    {"kind": "cut"},
    {"kind": "reset"},
)
LASTING: tuple[dict[str, Any], ...] = (
    {"kind": "refusal", "repeat": True},
    {"kind": "ungrounded", "repeat": True},
    {"kind": "wrong_model", "repeat": True},
    {"kind": "status", "status": 400, "repeat": True},
)
LASTING_SHARE = 0.1  # of the faulty ones
CERTIFICATE = "certificate error"
NUM_UNTRUSTED = 8  # fewer than the failures in a row after which a worker waits for its server
NAMES = {
    "hang": "hang",
    "trickle": "slow trickle",
    "truncated": "truncated JSON",
    "empty": "empty text",
    "cut": "connection closed half-way",
    "reset": "connection reset",
    "refusal": "refusal",
    "ungrounded": "ungrounded text",
    "wrong_model": "wrong model name",
}


def faults(settings: Settings, num_items: int) -> dict[str, Any]:
    """Describe made-up items once, and once more; returns what the module's first lines name."""
    titles = {f"i{number}": f"Film {number}" for number in range(num_items)}
    told = behaviours(list(titles))
    script = {_key(titles[item_id]): found for item_id, found in told.items()}
    temporary = partial(tempfile.TemporaryDirectory, dir=settings.home)
    with running_server(0.05) as url, temporary() as home, local_spark() as spark:
        _post(url, "/script", {"prompts": script})
        at = _settings(settings, Path(home), url, num_items)
        rows = {item_id: row.source for item_id, row in _described(spark, at, titles).items()}
        seen = json.loads(urllib.request.urlopen(f"{url}/seen".replace("/v1", "")).read())  # noqa: S310 - our own
        spent = _spent(spark, at)
        with running_server(0.05, self_signed=True) as unknown, temporary() as other:
            not_trusted = untrusted(spark, _settings(settings, Path(other), unknown, NUM_UNTRUSTED))
    passing = [item_id for item_id, found in told.items() if not found[0].get("repeat")]
    return {
        "num_items": num_items,
        "num_described": len(rows),
        "num_hit_by_transient": len(passing),
        "num_recovered": sum(rows[item_id] == "llm" for item_id in passing),
        "num_hit_by_lasting": len(told) - len(passing),
        "num_lasting_published": sum(rows[item_id] == "llm" for item_id in told if item_id not in passing),
        "num_paid_twice": sum(max(0, count - 1) for count in seen["answers"].values()),
        "num_requests": sum(seen["requests"].values()),
        "num_tokens": spent,
        "max_tokens": max_tokens(num_items),
        "by_fault": met(told, rows) | {CERTIFICATE: not_trusted},
    }


def max_tokens(num_items: int) -> int:
    """A cap near what is needed: 800 an item by the estimate, and what requests under way may take at most."""
    return 20_000 + 1000 * num_items


def _settings(settings: Settings, home: Path, url: str, num_items: int) -> Settings:
    return settings.model_copy(
        update={
            "home": home,  # metrics too: nothing of a benchmark is for a monitoring that watches the real ones
            "lake": home / "lake",
            "llm_url": url,
            "llm_model": "test-model",
            "llm_concurrency": 32,
            "llm_timeout_seconds": 5.0,
            "llm_max_attempts": 6,
            "llm_budget": 2 * num_items,
            "llm_max_tokens": 2 * max_tokens(num_items),  # items have half of it
            "llm_repairs": 0,
            "llm_max_failure_share": 1.0,
            "now": None,
        }
    )


def met(told: dict[str, list[dict[str, Any]]], sources: dict[str, str]) -> dict[str, dict[str, int]]:
    """By fault: how many items met it, maybe beside others, and how many of these have the model's text in the end."""
    items, recovered = Counter[str](), Counter[str]()
    for item_id, found in told.items():
        for fault in {name_of(behaviour) for behaviour in found}:
            items[fault] += 1
            recovered[fault] += sources[item_id] == "llm"
    return {fault: {"num_items": num, "num_with_text": recovered[fault]} for fault, num in sorted(items.items())}


def name_of(behaviour: dict[str, Any]) -> str:
    """As the report calls a behaviour of the server."""
    if behaviour["kind"] != "status":
        return NAMES[behaviour["kind"]]
    if behaviour["status"] != 429:
        return f"status {behaviour['status']}"
    return f"status 429 {'with' if 'retry_after' in behaviour else 'without'} Retry-After"


def untrusted(spark: Any, settings: Settings) -> dict[str, int]:
    """What becomes of items whose server shows a certificate of its own making; the day is run once.

    Of no use is any call: the items have to end with facts and the reason, after one call each.
    """
    from spark_jobs.generation.ledger import Ledger
    from spark_jobs.storage.lake import Lake

    titles = {f"i{number}": f"Film {number}" for number in range(NUM_UNTRUSTED)}
    rows = _described(spark, settings, titles, num_runs=1)
    calls = Ledger(Lake(spark, settings), tables.ITEM_GENERATION).of_day(DAY).collect()
    return {
        "num_items": len(rows),
        "num_with_text": sum(row.source == "llm" for row in rows.values()),
        "num_with_reason": sum(row.fallback_reason == "certificate" for row in rows.values()),
        "num_calls": sum(call.num_attempts for call in calls),
    }


def behaviours(item_ids: list[str], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """What happens to the requests of the faulty items: one to three passing faults, or one that lasts."""
    chosen = random.Random(seed)  # noqa: S311 - no secret
    found = {}
    for item_id in chosen.sample(item_ids, round(FAULTY_SHARE * len(item_ids))):
        if chosen.random() < LASTING_SHARE:
            found[item_id] = [chosen.choice(LASTING)]
        else:
            found[item_id] = chosen.choices(TRANSIENT, k=chosen.randint(1, 3))
    return found


def _described(spark: Any, settings: Settings, titles: dict[str, str], num_runs: int = 2) -> dict[str, Any]:
    """The row of every item's description, after the day was run so often."""
    from spark_jobs.generation.budget import Caps
    from spark_jobs.generation.describe_entities import describe, real_model
    from spark_jobs.storage.lake import Lake

    lake = Lake(spark, settings)
    lake.write(tables.ITEMS, spark.createDataFrame(_rows(titles), tables.ITEMS.ddl), DAY)
    facts = spark.createDataFrame(
        [(key, 1, json.dumps({"title": title, "attributes": _FACTS})) for key, title in titles.items()],
        "entity_id string, activity bigint, raw string",
    )
    for _ in range(num_runs):
        make_model = real_model(settings, 2)
        describe(lake, DAY, ITEM, facts, caps=Caps.of(settings, "item"), make_model=make_model)
    return {row.item_id: row for row in lake.read(tables.ITEM_DESCRIPTION, DAY).collect()}


_FACTS = {"genres": "Drama", "year": "1995"}


def _rows(titles: dict[str, str]) -> list[tuple[str, str, dict[str, str]]]:
    return [(key, title, _FACTS) for key, title in titles.items()]


def _spent(spark: Any, settings: Settings) -> int:
    from pyspark.sql import functions as F

    from spark_jobs.generation.ledger import Ledger
    from spark_jobs.storage.lake import Lake

    tokens = F.sum(F.col("num_input_tokens") + F.col("num_output_tokens")).alias("tokens")
    [row] = Ledger(Lake(spark, settings), tables.ITEM_GENERATION).of_day(DAY).agg(tokens).collect()
    return int(row.tokens)


def _key(title: str) -> str:
    """How the server tells prompts apart: by their last message."""
    return messages(ITEM, item_input({"title": title, "attributes": _FACTS}, ()))[-1]["content"]


def _post(url: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{url}{path}".replace("/v1", ""), json.dumps(body).encode(), method="POST")  # noqa: S310
    urllib.request.urlopen(request).read()  # noqa: S310 - our own server
