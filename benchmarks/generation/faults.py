"""What becomes of a day's descriptions when the language model's server fails in many ways.

Spark describes made-up items with the fault server of the tests. The server misbehaves for 60 % of the items, for a
few answers or for good. Counted are:

- how many items have the model's text in the end, of those that met only passing faults;
- answers that were paid for twice;
- items without a description;
- tokens, which must stay within the day's limit.

A few more items go to a server whose certificate nobody trusts. The day must end with the reason, after the first few
requests and one call for each.
"""

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.core.spark import local_spark
from grasp import tables
from grasp.settings import ROOT, Settings
from spark_jobs.generation.prompts import ITEM, item_input, prompt_messages

SERVER = ROOT / "tests" / "spark_jobs" / "fault_server.py"
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


def describe_with_faults(settings: Settings, num_items: int) -> dict[str, Any]:
    """Run the day twice and count what the module's docstring lists."""
    titles = {f"i{number}": f"Film {number}" for number in range(num_items)}
    behaviour_of = behaviours(list(titles))
    script = {_key(titles[item_id]): found for item_id, found in behaviour_of.items()}
    temporary = partial(tempfile.TemporaryDirectory, dir=settings.home)
    with running_server() as url, temporary() as home, local_spark(settings) as spark:
        _post(url, "/script", {"prompts": script})
        at = _settings(settings, Path(home), url, num_items)
        rows = {item_id: row.source for item_id, row in _described(spark, at, titles).items()}
        seen = json.loads(urllib.request.urlopen(f"{url}/seen".replace("/v1", "")).read())  # noqa: S310 - our own
        spent = _spent(spark, at)
        with running_server(self_signed=True) as unknown, temporary() as other:
            not_trusted = untrusted(spark, _settings(settings, Path(other), unknown, NUM_UNTRUSTED))
    passing = [item_id for item_id, found in behaviour_of.items() if not found[0].get("repeat")]
    return {
        "num_items": num_items,
        "num_described": len(rows),
        "num_hit_by_transient": len(passing),
        "num_recovered": sum(rows[item_id] == "llm" for item_id in passing),
        "num_hit_by_lasting": len(behaviour_of) - len(passing),
        "num_lasting_published": sum(rows[item_id] == "llm" for item_id in behaviour_of if item_id not in passing),
        "num_paid_twice": sum(max(0, count - 1) for count in seen["answers"].values()),
        "num_requests": sum(seen["requests"].values()),
        "num_tokens": spent,
        "max_tokens": max_tokens(num_items),
        "by_fault": met(behaviour_of, rows) | {CERTIFICATE: not_trusted},
    }


@contextmanager
def running_server(self_signed: bool = False) -> Iterator[str]:
    """The base URL of the fault server; with a self-signed certificate it speaks HTTPS."""
    command = [sys.executable, str(SERVER), "--seconds", "0.05", *(["--self-signed"] if self_signed else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"{'https' if self_signed else 'http'}://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.communicate()


def max_tokens(num_items: int) -> int:
    """A limit close to what is needed: 800 an item by the estimate, and what requests under way can take at most."""
    return 20_000 + 1000 * num_items


def _settings(settings: Settings, home: Path, url: str, num_items: int) -> Settings:
    return settings.model_copy(
        update={
            "home": home,  # also the metrics: monitoring of the real ones must not see a benchmark's
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


def met(behaviour_of: dict[str, list[dict[str, Any]]], sources: dict[str, str]) -> dict[str, dict[str, int]]:
    """By fault: how many items met it, alone or among others, and how many of them have the model's text in the end."""
    items, recovered = Counter[str](), Counter[str]()
    for item_id, found in behaviour_of.items():
        for fault in {name_of(behaviour) for behaviour in found}:
            items[fault] += 1
            recovered[fault] += sources[item_id] == "llm"
    return {fault: {"num_items": num, "num_with_text": recovered[fault]} for fault, num in sorted(items.items())}


def name_of(behaviour: dict[str, Any]) -> str:
    """The report's name for a behaviour of the server."""
    if behaviour["kind"] != "status":
        return NAMES[behaviour["kind"]]
    if behaviour["status"] != 429:
        return f"status {behaviour['status']}"
    return f"status 429 {'with' if 'retry_after' in behaviour else 'without'} Retry-After"


def untrusted(spark: Any, settings: Settings) -> dict[str, int]:
    """Describe a few items at a server with a self-signed certificate; the day is run once."""
    from spark_jobs.generation.ledger import Ledger
    from spark_jobs.generation.live_generation import GenerationError
    from spark_jobs.storage.lake import Lake

    titles = {f"i{number}": f"Film {number}" for number in range(NUM_UNTRUSTED)}
    with contextlib.suppress(GenerationError):
        _described(spark, settings, titles, num_runs=1)
    calls = Ledger(Lake(spark, settings), tables.ITEM_GENERATION).of_day(DAY).collect()
    return {
        "num_items": len(titles),
        "num_with_text": sum(call.error is None for call in calls),
        "num_with_reason": sum(call.error == "certificate" for call in calls),
        "num_calls": sum(call.num_attempts for call in calls),
    }


def behaviours(item_ids: list[str], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """What happens to the requests of the faulty items: one to three passing faults, or one lasting fault."""
    chosen = random.Random(seed)  # noqa: S311 - no secret
    found = {}
    for item_id in chosen.sample(item_ids, round(FAULTY_SHARE * len(item_ids))):
        if chosen.random() < LASTING_SHARE:
            found[item_id] = [chosen.choice(LASTING)]
        else:
            found[item_id] = chosen.choices(TRANSIENT, k=chosen.randint(1, 3))
    return found


def _described(spark: Any, settings: Settings, titles: dict[str, str], num_runs: int = 2) -> dict[str, Any]:
    """Every item's description row after `num_runs` runs of the day."""
    from spark_jobs.generation.budget import Caps
    from spark_jobs.generation.describe_entities import describe_entities, model_factory
    from spark_jobs.storage.lake import Lake

    lake = Lake(spark, settings)
    lake.write(tables.ITEMS, spark.createDataFrame(_rows(titles), tables.ITEMS.ddl), DAY)
    facts = spark.createDataFrame(
        [(key, 1, json.dumps({"title": title, "attributes": _FACTS})) for key, title in titles.items()],
        "entity_id string, activity bigint, raw string",
    )
    for _ in range(num_runs):
        make_model = model_factory(settings, 2)
        describe_entities(lake, DAY, ITEM, facts, caps=Caps.of(settings, "item"), make_model=make_model)
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
    """The server tells prompts apart by their last message."""
    return prompt_messages(ITEM, item_input({"title": title, "attributes": _FACTS}, ()))[-1]["content"]


def _post(url: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{url}{path}".replace("/v1", ""), json.dumps(body).encode(), method="POST")  # noqa: S310
    urllib.request.urlopen(request).read()  # noqa: S310 - our own server
