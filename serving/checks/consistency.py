"""Compare served requests with the offline features and with training's scorer.

    grasp consistency --day D [--sample N] [--log FOLDER]

Reads:   the day's served requests (see `LOG_COLUMNS`), the releases that answered, user_features, the online store
Writes:  nothing; prints the differences. Exits with 1 if there are more than the limit, and with 3 if no request could
         be compared

* Features: the online row of a user against the row in the lake, for the day that was served. A user whose online row
  has moved on to another day is counted, not compared.
* Scores: the served scores against those of `training.evaluation.ranking`, which evaluated the model, and what takers
  and votes add (`offline_fresh.py`), for the offline features. Votes of the release's moments are found again, by
  states that are computed anew.

Shape suffixes:  N items of the release  R items of an answer
"""

# ruff: noqa: N803 - the shape suffixes above

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grasp import partitions, tables
from grasp.days import day_argument, day_number, end_of
from grasp.environment import prepare
from grasp.manifest import MANIFEST_FILE, Manifest, read_manifest, release_folder
from grasp.preflight import require_feature_store
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.tables import MAX_SEQUENCE_LENGTH
from serving.checks.offline_fresh import Asking, OfflineFresh
from serving.lookup.online_store import FeastUserStore, StoreError, UserRow, UserStore
from serving.ranking.items import ItemSide, load_items
from serving.ranking.release_ranker import check_files
from training.data.training_set import TrainingSet
from training.evaluation.ranking import Event, RankerScorer
from training.model.artefact import LoadedRanker, load_ranker

LOG_FOLDER = "served_requests"  # below the lake
LOG_COLUMNS = (
    "request_id",
    "user_id",
    "release_id",
    "feature_day",
    "recent_item_ids",
    "item_ids",
    "scores",
    "fallback",
    "served_at",
)
LATER_LOG_COLUMNS = ("votes_from",)  # missing in logs of earlier programs
SCORED = (None, "last_good", "stale_features")  # with these fallbacks the model scored the user's complete row
DEFAULT_SAMPLE = 1000
NOTHING_COMPARED = 3  # exit status; argparse uses 2
MAX_SCORE_DIFFERENCE = 1e-4
MAX_SEARCHED_DIFFERENCE = 1e-2  # with votes of moments: what rounding of states and votes may change
MAX_FEATURE_DIFFERENCE = 1e-6  # both sides hold float32
COMPARED_FEATURES = tuple(
    each.name
    for each in fields(UserRow)
    if each.name not in ("user_id", "event_timestamp", "computed_at")  # Feast cuts computed_at to seconds
)
OpenUserStore = Callable[[Settings, Manifest], UserStore]


class SkewError(ValueError):
    """Online and offline differ by more than the limit."""


class NothingComparedError(ValueError):
    """No request could be compared, so the check has found nothing out; the message says why."""


@dataclass(frozen=True)
class ServedRequest:
    """One logged answer. `scores` belong to `item_ids`, best first."""

    request_id: str
    user_id: str
    release_id: str
    feature_day: str
    recent_item_ids: list[str]
    item_ids: list[str]
    scores: list[float]
    fallback: str | None
    served_at: datetime
    votes_from: str | None = None

    @property
    def max_difference(self) -> float:
        """Of two scores that count as equal."""
        return MAX_SEARCHED_DIFFERENCE if self.votes_from == "moments" else MAX_SCORE_DIFFERENCE


@dataclass
class Skew:
    """How much was compared, and how much differs."""

    num_requests: int = 0  # in the sample
    num_fallbacks: int = 0  # requests answered without the user's features, so not comparable
    num_gone: int = 0  # requests whose release or offline features no longer exist
    num_scored: int = 0  # requests scored again
    num_score_differences: int = 0  # requests with a score off by more than `max_difference`
    max_score_difference: float = 0.0
    num_order_differences: int = 0  # requests whose items have another order offline
    num_users: int = 0  # users whose online row is of the day that was served
    num_moved_on: int = 0  # users whose online row is of another day, or gone
    feature_differences: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # column -> users
    max_feature_differences: dict[str, float] = field(default_factory=dict)  # column -> largest absolute difference
    examples: list[str] = field(default_factory=list)
    users_with_differences: set[str] = field(default_factory=set)

    @property
    def share_of_requests(self) -> float:
        """Share of the scored requests whose scores or order differ."""
        return max(self.num_score_differences, self.num_order_differences) / max(self.num_scored, 1)

    @property
    def share_of_users(self) -> float:
        """Share of the compared users with a feature that differs."""
        return len(self.users_with_differences) / max(self.num_users, 1)


def check(
    settings: Settings,
    day: str,
    log: Path,
    *,
    num: int = DEFAULT_SAMPLE,
    limit: float = 0.0,
    open_user_store: OpenUserStore = FeastUserStore,
) -> Skew:
    """Compare a sample of a day's requests and print the result.

    Raises `SkewError` when a larger share of requests or users than `limit` differs, and `NothingComparedError` when no
    request could be scored again.
    """
    skew = compare(settings, sample(read_requests(log, day), num), open_user_store)
    for line in report(skew):
        say(f"consistency {day}: {line}")
    if max(skew.share_of_requests, skew.share_of_users) > limit:
        raise SkewError(f"online and offline differ, more than --limit {limit:g} allows")
    if not skew.num_scored:
        raise NothingComparedError(
            f"nothing was compared: of {skew.num_requests:,} requests {skew.num_fallbacks:,} were fallbacks, and the "
            f"release or day of {skew.num_gone:,} is gone"
        )
    return skew


def read_requests(place: Path, day: str) -> list[ServedRequest]:
    """A day's served requests. Raises `NothingComparedError` without any, `ValueError` if a file lacks columns."""
    files = sorted((place / f"day={day}").glob(f"**/{partitions.FINISHED_FILES}"))
    if not files:
        raise NothingComparedError(
            f"nothing was compared: no served requests of {day} in {place}; is GRASP_LOG_REQUESTS on?"
        )
    requests = []
    for file in files:
        missing = set(LOG_COLUMNS) - set(pq.read_schema(file).names)
        if missing:
            raise ValueError(f"{file} is not a log of served requests: it lacks {', '.join(sorted(missing))}")
        rows = pq.ParquetFile(file).read(columns=[*LOG_COLUMNS, *LATER_LOG_COLUMNS]).to_pylist()
        requests += [ServedRequest(**{**row, "recent_item_ids": row["recent_item_ids"] or []}) for row in rows]
    return requests


def sample(requests: Sequence[ServedRequest], num: int, seed: int = 0) -> list[ServedRequest]:
    """A random sample of `num` requests, the same ones each time."""
    ordered = sorted(requests, key=lambda each: each.request_id)
    return ordered if len(ordered) <= num else random.Random(seed).sample(ordered, num)  # noqa: S311 - no secret


def compare(
    settings: Settings, requests: Iterable[ServedRequest], open_user_store: OpenUserStore = FeastUserStore
) -> Skew:
    """Compare requests with the offline side. Raises `StoreError` when the online store does not answer."""
    skew = Skew()
    groups: dict[tuple[str, str], list[ServedRequest]] = defaultdict(list)
    for each in requests:
        skew.num_requests += 1
        if each.fallback not in SCORED:
            skew.num_fallbacks += 1
        else:
            groups[each.release_id, each.feature_day].append(each)
    for (release_id, day), of_group in sorted(groups.items()):
        manifest_file = settings.releases / release_id / MANIFEST_FILE
        if not manifest_file.is_file():
            skew.num_gone += len(of_group)
            continue
        manifest = read_manifest(manifest_file)
        offline = _offline_rows(settings, manifest, day, {each.user_id for each in of_group})
        known = [each for each in of_group if each.user_id in offline]
        skew.num_gone += len(of_group) - len(known)
        if known:
            _compare_scores(skew, _load(settings, manifest), known, offline)
            _compare_features(skew, open_user_store(settings, manifest), day, {each.user_id for each in known}, offline)
    return skew


@dataclass(frozen=True)
class _OfflineRelease:
    """A release as training reads it: its items, and its ranker with no items attached yet."""

    manifest: Manifest
    place: Path
    items: ItemSide
    loaded: LoadedRanker


def _load(settings: Settings, manifest: Manifest) -> _OfflineRelease:
    place = release_folder(settings.releases, manifest)
    check_files(place, manifest)
    loaded = load_ranker(place / "model")
    items = load_items(place / "items", manifest.feature_version, loaded.vocabulary)
    return _OfflineRelease(manifest, place, items, loaded)


def _offline_rows(settings: Settings, manifest: Manifest, day: str, user_ids: set[str]) -> dict[str, dict[str, Any]]:
    """The users' rows in the lake; empty when the day no longer exists."""
    partition = partitions.partition_path(settings.lake, tables.USER_FEATURES, manifest.feature_version, day)
    if partitions.read_content(partition) is None:
        return {}
    wanted = pa.array(sorted(user_ids))
    rows = pq.read_table(partition, partitioning=None, filters=pc.field("user_id").isin(wanted))
    return {row["user_id"]: row for row in rows.to_pylist()}


def _compare_scores(
    skew: Skew, offline: _OfflineRelease, requests: Sequence[ServedRequest], rows: dict[str, dict[str, Any]]
) -> None:
    """Score the requests as training does, and compare the score and place of every served item."""
    users = sorted({each.user_id for each in requests})
    training_set = _training_set(offline.items, users, rows)
    ranker = offline.loaded.ranker
    score = RankerScorer(ranker, offline.loaded.vocabulary, training_set)
    fresh = OfflineFresh(offline.place, offline.manifest, ranker.fresh, training_set.item_ids, score.states)
    user_of = {user_id: number for number, user_id in enumerate(users)}
    item_of = {item_id: number for number, item_id in enumerate(training_set.item_ids, 1)}
    for each in requests:
        sequence = [*rows[each.user_id]["sequence"], *each.recent_item_ids]
        history = [item_of[item_id] for item_id in sequence if item_id in item_of][-MAX_SEQUENCE_LENGTH:]
        if not history or any(item_id not in item_of for item_id in each.item_ids):
            skew.num_score_differences += 1
            _add_example(skew, f"request {each.request_id}: its user or an item of its answer is not in the release")
            skew.num_scored += 1
            continue
        event = Event(user_of[each.user_id], np.array(history), 0, day_number(each.feature_day) + 1)
        asking = Asking(each.user_id, event.user, event.history, rows[each.user_id], each.votes_from)
        places = [item_of[item_id] - 1 for item_id in each.item_ids]
        own_R = score([event])[0][places]
        low_R, high_R = (own_R + added_N[places] for added_N in fresh.added(asking))
        _count_differences(skew, each, low_R, high_R)


def _count_differences(skew: Skew, request: ServedRequest, low_R: np.ndarray, high_R: np.ndarray) -> None:
    """Compare a request with the least and the largest scores that its items may have, in their order.

    The order differs if an item is above one whose offline score is higher by more than rounding.
    """
    served_R = np.array(request.scores)
    difference = float(np.maximum(low_R - served_R, served_R - high_R).max(initial=0.0))
    rises = float((low_R[1:] - high_R[:-1]).max(initial=0.0))
    skew.num_scored += 1
    skew.max_score_difference = max(skew.max_score_difference, difference)
    if not difference <= request.max_difference:
        skew.num_score_differences += 1
        _add_example(
            skew, f"request {request.request_id} of user {request.user_id}: a score is off by {difference:.2g}"
        )
    if not rises <= request.max_difference:
        skew.num_order_differences += 1
        _add_example(skew, f"request {request.request_id} of user {request.user_id}: the offline order differs")


def _training_set(items: ItemSide, user_ids: list[str], rows: dict[str, dict[str, Any]]) -> TrainingSet:
    """Items and users as a training set; scoring reads only its ids and vectors, so the rest is empty."""
    available = np.flatnonzero(items.available_N)
    semantic, neighbour = (
        np.array([rows[user_id][name] for user_id in user_ids], np.float32)
        for name in ("semantic_embedding", "neighbour_embedding")
    )
    return TrainingSet(
        item_ids=[items.ids[row] for row in available],
        item_semantic=items.semantic_NS[available],
        item_neighbour=items.neighbour_NS[available],
        popularity=items.popularity_N[available],
        item_is_tail=np.zeros(len(available), dtype=bool),
        user_ids=user_ids,
        user_semantic=semantic,
        user_neighbour=neighbour,
        user_is_tail=np.zeros(len(user_ids), dtype=bool),
        sequences=[np.zeros(0, np.int64)] * len(user_ids),
        splits=[np.zeros(0, str)] * len(user_ids),
        days=[np.zeros(0, np.int64)] * len(user_ids),
    )


def _compare_features(
    skew: Skew, users: UserStore, day: str, user_ids: set[str], rows: dict[str, dict[str, Any]]
) -> None:
    for user_id in sorted(user_ids):
        online = users.get(user_id)
        if online is None or online.event_timestamp.replace(microsecond=0) != end_of(day).replace(microsecond=0):
            skew.num_moved_on += 1
            continue
        skew.num_users += 1
        for name in COMPARED_FEATURES:
            value = getattr(online, name)
            value = value.tolist() if isinstance(value, np.ndarray) else value
            difference = _difference(value, rows[user_id].get(name))
            if difference is None:
                continue
            skew.feature_differences[name] += 1
            skew.users_with_differences.add(user_id)
            skew.max_feature_differences[name] = max(skew.max_feature_differences.get(name, 0.0), difference)
            _add_example(skew, f"user {user_id}: {name} online differs from the lake's of {day}")


def _difference(online: Any, offline: Any) -> float | None:
    """The largest absolute difference, infinite for values that are not numbers; None for equal values."""
    if online == offline or (not online and not offline):  # older features: an empty list online, no column offline
        return None
    try:
        left, right = np.array(online, np.float64), np.array(offline, np.float64)
    except (TypeError, ValueError):
        return float("inf")
    if left.shape != right.shape:
        return float("inf")
    difference = float(np.abs(left - right).max(initial=0.0))
    return None if difference <= MAX_FEATURE_DIFFERENCE else difference


def _add_example(skew: Skew, example: str, most: int = 10) -> None:
    if len(skew.examples) < most:
        skew.examples.append(example)


def report(skew: Skew) -> list[str]:
    """The result as lines of text."""
    lines = [
        f"{skew.num_requests:,} requests: {skew.num_scored:,} scored again, {skew.num_fallbacks:,} were fallbacks, "
        f"{skew.num_gone:,} of a release or day that is gone",
        f"scores: {skew.num_score_differences:,} requests differ by more than {MAX_SCORE_DIFFERENCE:g} "
        f"(largest {skew.max_score_difference:.2g}), {skew.num_order_differences:,} have another order",
        (
            f"features: {len(skew.users_with_differences):,} of {skew.num_users:,} users differ"
            if skew.num_users
            else "features: no user was compared"
        )
        + f"; the online store has moved on from {skew.num_moved_on:,} others",
    ]
    for name, num in sorted(skew.feature_differences.items()):
        lines.append(f"feature {name}: {num:,} users, largest difference {skew.max_feature_differences[name]:.3g}")
    return lines + skew.examples


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp consistency", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day the requests were served on")
    parser.add_argument("--sample", type=int, default=DEFAULT_SAMPLE, help="requests that are replayed, at most")
    parser.add_argument("--log", type=Path, help=f"folder of the log; {LOG_FOLDER} in the lake by default")
    parser.add_argument("--limit", type=float, default=0.0, help="share of requests or users that may differ")
    arguments = parser.parse_args()
    try:
        settings = Settings.load()
        log = arguments.log or settings.lake / LOG_FOLDER
        check(settings, arguments.day, log, num=arguments.sample, limit=arguments.limit)
    except NothingComparedError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(NOTHING_COMPARED)
    except (SettingsError, ValueError, FileNotFoundError, StoreError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    prepare(require_feature_store)
    main()
