"""People and searches to start with, for somebody who knows no id."""

import logging
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions, tables
from serving.answers.profiles import snippet
from serving.answers.recommender import Recommender
from serving.lookup.user_lookup import UserLookup, first_problem
from serving.rollout.follower import LoadedRelease
from serving.schemas import ExamplePerson, ExamplesResponse
from serving.telemetry.metrics import Metrics

NUM_PEOPLE, NUM_SEARCHES = 8, 8
MIN_INTERACTIONS = 5  # of a person whose recommendations are worth a look

log = logging.getLogger("grasp.serving")


class Examples:
    """People of the release in force, chosen once per release; what is said of them comes from the online store."""

    def __init__(self, recommender: Recommender, lookup: UserLookup, metrics: Metrics, lake: Path) -> None:
        self._recommender = recommender
        self._lookup = lookup
        self._metrics = metrics
        self._lake = lake
        self._lock = threading.Lock()  # of the choice, which reads all users of the day
        self._chosen: tuple[str, list[str]] = ("", [])  # release id and user ids

    def answer(self, request_id: str) -> ExamplesResponse:
        release = self._recommender.loaded().in_force
        found = self._lookup.get_many([(release, user_id) for user_id in self._user_ids(release)])
        problem = first_problem(found)
        if problem:
            self._metrics.count_store_problem(problem)
        return ExamplesResponse(
            request_id=request_id,
            people=[
                ExamplePerson(
                    user_id=row.user_id,
                    description=snippet(row.description),
                    num_interactions=row.num_interactions,
                    latest_titles=[release.items.title(each) for each in release.ranker.rows_of(row.sequence[-3:])][
                        ::-1
                    ],
                )
                for row in (each.row for each in found)
                if row is not None
            ],
            searches=[name for name, _ in release.catalogue.all_categories()[:NUM_SEARCHES]],
            release=release.release_id,
            store_problem=problem,
        )

    def _user_ids(self, release: LoadedRelease) -> list[str]:
        with self._lock:
            release_id, user_ids = self._chosen
            if release_id != release.release_id:
                user_ids = _people(self._lake, release.feature_version, release.manifest.day)
                if user_ids:  # a lake that is out of reach is asked again
                    self._chosen = release.release_id, user_ids
            return user_ids


def _people(lake: Path, version: str, day: str) -> list[str]:
    """Users of the day from few to many interactions, in equal steps of rank; none where the lake cannot be read."""
    place = partitions.partition_path(lake, tables.USER_FEATURES, version, day)
    try:
        parts = [pq.ParquetFile(file).read(["user_id", "num_interactions"]) for file in sorted(place.glob("*.parquet"))]
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("no example people: the lake's users of %s cannot be read: %s", day, type(error).__name__)
        return []
    if not parts:
        return []
    users = pa.concat_tables(parts).sort_by([("num_interactions", "ascending"), ("user_id", "ascending")])
    num_few = int(np.searchsorted(users["num_interactions"].to_numpy(), MIN_INTERACTIONS))
    users = users.slice(num_few) if num_few < len(users) else users
    places = np.unique(np.linspace(0, len(users) - 1, NUM_PEOPLE).round().astype(np.int64))
    return [str(user_id) for user_id in users["user_id"].take(pa.array(places)).to_pylist()]
