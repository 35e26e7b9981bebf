"""A long load while stores fail and a corrupt release is published: no 5xx, no growing memory, no untrue answer."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlencode

from benchmarks.core.redis_server import RedisServer
from benchmarks.serving.answer_checks import (
    CORRUPT,
    MILVUS_STOPPED,
    NONE,
    REDIS_BACK,
    REDIS_KILLED,
    RESTORED,
    ROLLED_BACK,
    STEPS,
    Allowed,
    Phase,
    SearchAnswer,
    is_true,
    is_true_search,
    labels,
    memory_growth,
    thinned,
)
from benchmarks.serving.load import OK, Load, started
from benchmarks.serving.release import DAY
from benchmarks.serving.running_service import RunningService
from grasp.environment import process_environment
from grasp.files import write_json
from grasp.manifest import CURRENT_FILE, MANIFEST_FILE, Manifest, manifest_in_force, release_folder
from grasp.progress import say
from grasp.settings import ROOT, Settings
from serving.releases.manage import rollback

MIN_STEP_SECONDS = 5.0  # after an action: the service looks once a second what is in force
SAMPLE_SECONDS = 5.0  # between two readings of the workers' memory, and between two searches
RESTORE = ("-m", "feature_repo.materialise", "--day", DAY, "--rollback")  # the one command that brings features back
QUERIES = ("something for dry skin", "a quiet evening", "a present for a friend")
NUM_SHOWN = 5
SERVER_ERROR = 500  # the first status of these

MEMORY = frozenset({("memory", NONE)})
MILVUS_GONE = frozenset({("memory", "milvus_error"), ("memory", "milvus_timeout")})
MILVUS = MILVUS_GONE | {("milvus", NONE)}  # a slow server is left alone for a while


def soak(
    service: RunningService,
    redis: RedisServer,
    bodies: Sequence[str],
    rate: float,
    seconds: float,
    *,
    stop_milvus: Callable[[], None] | None,
) -> dict[str, Any]:
    """Load the service and take each step in its time. `stop_milvus` is None without a Milvus server.

    Afterwards the release and the features are as before.
    """
    settings = service.settings
    good = manifest_in_force(settings.releases)
    corrupt = _corrupt(good)
    actions: dict[str, Callable[[], object]] = {
        REDIS_KILLED: redis.kill,
        REDIS_BACK: redis.start,
        RESTORED: lambda: _restore(settings),
        CORRUPT: lambda: _put_in_force(settings, good, corrupt),
        ROLLED_BACK: lambda: rollback(settings, good.release_id),
    }
    if stop_milvus:
        actions[MILVUS_STOPPED] = stop_milvus
    try:
        observed = _observe(service, bodies, rate, seconds, actions)
    finally:
        if manifest_in_force(settings.releases).release_id == corrupt.release_id:
            rollback(settings, good.release_id)
        shutil.rmtree(release_folder(settings.releases, corrupt), ignore_errors=True)
    return {
        **observed.load.summary(),
        "rate": rate,
        "num_workers": settings.serving_workers,
        "has_milvus": stop_milvus is not None,
        **_answers(observed, good.release_id, settings.lookup_timeout_ms / 1000),
        **_states(observed, seconds),
    }


class Watch:
    """Reads the workers' memory and asks a search every few seconds."""

    def __init__(self, service: RunningService, searches: bool) -> None:
        self.samples: list[tuple[float, dict[int, float]]] = []
        self.searches: list[SearchAnswer] = []
        self._service, self._asks = service, searches

    def until(self, start: float, end: float) -> None:
        """Until so many seconds after the start."""
        while (left := start + end - time.monotonic()) > 0:
            self.samples.append((time.monotonic() - start, self._service.worker_megabytes()))
            if self._asks:
                self.searches.append(self._search())
            time.sleep(min(SAMPLE_SECONDS, left))

    def _search(self) -> SearchAnswer:
        query = urlencode({"q": QUERIES[len(self.searches) % len(QUERIES)], "k": 5})
        sent = time.monotonic()
        status, text = self._service.get(f"/v1/search?{query}")
        found = json.loads(text) if status else {}
        return SearchAnswer(sent, time.monotonic(), status, found.get("backend", NONE), found.get("fallback") or NONE)


@dataclass(frozen=True)
class Observed:
    """What was observed of a service during the steps."""

    load: Load
    phases: list[Phase]  # one for each step
    readiness: dict[str, dict[str, str | None]]  # at the end of each phase: reason and problem, as `_readiness` gives
    watch: Watch


def _observe(
    service: RunningService,
    bodies: Sequence[str],
    rate: float,
    seconds: float,
    actions: Mapping[str, Callable[[], object]],
) -> Observed:
    """Load the service and take the steps that have an action. The first step is calm and has none."""
    has_milvus = MILVUS_STOPPED in actions
    calm, *others = STEPS
    steps = [calm, *(step for step in others if step.name in actions)]
    ends = [step.share * seconds for step in steps[1:]] + [seconds]
    watch = Watch(service, service.settings.search)
    phases: list[Phase] = []
    readiness: dict[str, dict[str, str | None]] = {}
    with started(service.url, bodies, rate, seconds) as running:
        for step, end in zip(steps, ends, strict=True):
            say(f"soak: {step.name}")
            begins = time.monotonic()
            if step is not calm:
                actions[step.name]()
            allowed = Allowed(step.fallbacks, step.store_problems, _searches(step.name, has_milvus))
            phases.append(Phase(step.name, allowed, begins, time.monotonic()))
            # On a busy machine an action may take longer than its step.
            watch.until(running.start, max(end, time.monotonic() - running.start + MIN_STEP_SECONDS))
            readiness[step.name] = _readiness(service)
        return Observed(running.result(), phases, readiness, watch)


def _readiness(service: RunningService) -> dict[str, str | None]:
    """Why the service is not ready, or else the problem of its online store; and why a release was refused."""
    status, text = service.get("/readyz")
    if status != OK:
        return {"reason": text, "problem": None}
    _, listed = service.get("/v1/dependencies")
    problems = {each["name"]: each["problem"] for each in json.loads(listed)["dependencies"]}
    return {"reason": problems["online_store"], "problem": json.loads(text)["problem"]}


def _answers(observed: Observed, release_id: str, timeout_seconds: float) -> dict[str, Any]:
    """What a measurement keeps of the answers and searches: their numbers, and which were untrue."""
    answers, searches = observed.load.answers, observed.watch.searches
    untrue = [answer for answer in answers if not is_true(answer, observed.phases, release_id, timeout_seconds)]
    untrue_searches = [found for found in searches if not is_true_search(found, observed.phases)]
    statuses = [answer.status for answer in answers] + [found.status for found in searches]
    return {
        "num_5xx": sum(status >= SERVER_ERROR for status in statuses),
        "num_searches": len(searches),
        "num_searches_by_milvus": sum(each.backend == "milvus" for each in searches),
        "num_failed_searches": sum(each.status != OK for each in searches),
        "num_untrue": len(untrue) + len(untrue_searches),
        "untrue": [[each.release, each.fallback, each.store_problem] for each in untrue[:NUM_SHOWN]],
        "untrue_searches": [[each.backend, each.fallback] for each in untrue_searches[:NUM_SHOWN]],
        "labels": labels(answers, observed.phases),
    }


def _states(observed: Observed, seconds: float) -> dict[str, Any]:
    """What a measurement keeps of the service's state: readiness, time to restore, memory."""
    took = {phase.name: phase.done - phase.begins for phase in observed.phases}
    return {
        "corrupt_release_refused": observed.readiness[CORRUPT]["problem"] is not None,
        "readiness": {name: found["reason"] or "ready" for name, found in observed.readiness.items()},
        "restore_seconds": took[RESTORED],
        "memory_growth": memory_growth(observed.watch.samples, seconds),
        "worker_megabytes": thinned(observed.watch.samples),
    }


def _searches(step: str, has_milvus: bool) -> frozenset[tuple[str, str]]:
    if not has_milvus:
        return MEMORY
    return MILVUS_GONE if step == MILVUS_STOPPED else MILVUS


def _restore(settings: Settings) -> None:
    """Raises `ValueError` with what the command said when it failed."""
    command = [sys.executable, *RESTORE]
    done = subprocess.run(
        command, cwd=ROOT, env=process_environment(settings), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"python {' '.join(RESTORE)} failed: {(done.stdout + done.stderr)[-500:]}")


def _corrupt(good: Manifest) -> Manifest:
    """A manifest with a wrong checksum for one of its files."""
    name = next(iter(good.checksums))
    return replace(good, checksums=good.checksums | {name: "0" * 64})


def _put_in_force(settings: Settings, good: Manifest, manifest: Manifest) -> None:
    """Write what a publication writes last, without its checks."""
    target = release_folder(settings.releases, manifest)
    shutil.copytree(release_folder(settings.releases, good), target, dirs_exist_ok=True)
    content = asdict(manifest)
    write_json(target / MANIFEST_FILE, content)
    write_json(settings.releases / CURRENT_FILE, content)
