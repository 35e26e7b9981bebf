"""Publish and roll back releases under load: no request may fail, and no answer may mix two releases."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.serving.answer_checks import ReleasePeriod, is_of_one, slowest_take_up
from benchmarks.serving.load import OK, started
from benchmarks.serving.release import FIRST, ReleaseContent, publish_marked
from benchmarks.serving.running_service import RunningService
from grasp.manifest import manifest_in_force
from grasp.settings import Settings
from serving.releases.manage import rollback

RATE = 50.0  # requests a second, low because workers load releases meanwhile and a publication takes a core
NUM_CONNECTIONS = 16
STEPS = (2, 3, 2, 1, 3, FIRST)  # numbers of releases: published the first time, rolled back to afterwards
NUM_SHOWN = 5


def switch(
    service: RunningService, content: ReleaseContent, model: Path, bodies: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Publish and roll back under load. The first release is in force before and after.

    Raises `ValueError` when the load ended before the last switch: give more seconds.
    """
    settings = service.settings
    ids = {FIRST: manifest_in_force(settings.releases).release_id}
    history: list[ReleasePeriod] = [ReleasePeriod(FIRST, ids[FIRST], time.monotonic())]
    with started(service.url, bodies, RATE, seconds, NUM_CONNECTIONS) as running:
        for step, number in enumerate(STEPS, start=1):
            time.sleep(max(0.0, running.start + seconds * step / (len(STEPS) + 1) - time.monotonic()))
            begins = time.monotonic()
            ids[number] = _put_in_force(settings, content, model, number, ids)
            history[-1] = replace(history[-1], ends=time.monotonic())
            history.append(ReleasePeriod(number, ids[number], begins))
        if not running.is_running:
            raise ValueError(f"{len(STEPS)} switches took longer than {seconds:g} s of load")
        load = running.result()
    answered = [answer for answer in load.answers if answer.status == OK]
    mixed = [answer for answer in answered if not is_of_one(answer, history)]
    return load.summary() | {
        "rate": RATE,
        "num_workers": settings.serving_workers,
        "num_switches": len(STEPS),
        "num_releases": len(ids),
        "num_mixed": len(mixed),
        "mixed": [[answer.release, *answer.marks] for answer in mixed[:NUM_SHOWN]],
        "answers_by_release": dict(Counter(answer.release for answer in answered)),
        "slowest_take_up_seconds": slowest_take_up(answered, history),
    }


def _put_in_force(
    settings: Settings, content: ReleaseContent, model: Path, number: int, known: Mapping[int, str]
) -> str:
    if number in known:
        return rollback(settings, known[number]).release_id
    return publish_marked(settings, content, model, number).release_id
