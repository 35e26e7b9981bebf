"""Show what the release in force says to three users."""

import pyarrow.parquet as pq

from grasp import partitions, tables
from grasp.manifest import manifest_in_force, release_folder
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import Versions
from serving.lookup.online_store import FeastUserStore, UserRow
from serving.ranking.release_ranker import ReleaseRanker, load_release_ranker

NUM_HISTORY, NUM_NEIGHBOURS, NUM_RECOMMENDATIONS = 8, 3, 10


def show(settings: Settings, latest: str) -> str:
    """Print three users with their recommendations; returns the id of the first one."""
    manifest = manifest_in_force(settings.releases)
    served = load_release_ranker(release_folder(settings.releases, manifest), manifest)
    lookup = FeastUserStore(settings, manifest)
    profiles = _profiles(settings, latest)
    shown = three_users(_user_rows(settings, latest))
    for user_id in shown:
        user = lookup.get(user_id)
        if user is None:
            raise ValueError(
                f"user {user_id} has features of {latest} but no row online: materialise the day with --rollback"
            )
        _show_user(served, user, profiles)
    return shown[0]


def three_users(rows: list[dict[str, object]]) -> list[str]:
    """The most active one that the language model described, the least active one, and the one in the middle."""
    ordered = sorted(rows, key=lambda row: (-int(str(row["num_interactions"])), str(row["user_id"])))
    described = [str(row["user_id"]) for row in ordered if row["source"] == "llm"]
    tail = [str(row["user_id"]) for row in reversed(ordered) if row["is_tail"]]
    all_ids = [str(row["user_id"]) for row in ordered]
    middle = all_ids[len(all_ids) // 2 :]
    chosen = [*described[:1], *(tail[:1] or all_ids[-1:]), *middle, *all_ids]
    return list(dict.fromkeys(chosen))[:3]


def _user_rows(settings: Settings, day: str) -> list[dict[str, object]]:
    version = Versions(settings).feature
    partition = partitions.require_partition(settings.lake, tables.USER_FEATURES, version, day)
    columns = ["user_id", "num_interactions", "is_tail", "source"]
    return pq.read_table(partition, columns=columns, partitioning=None).to_pylist()


def _profiles(settings: Settings, day: str) -> dict[str, dict[str, str]]:
    partition = partitions.require_partition(settings.lake, tables.USERS, None, day)
    rows = pq.read_table(partition, partitioning=None).to_pylist()
    return {row["user_id"]: dict(row["attributes"] or []) for row in rows}


def _profile(user_id: str, profiles: dict[str, dict[str, str]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in profiles.get(user_id, {}).items()) or "no profile known"


def _show_user(served: ReleaseRanker, user: UserRow, profiles: dict[str, dict[str, str]]) -> None:
    latest = [served.items.title(row) for row in reversed(served.rows_of(user.sequence))][:NUM_HISTORY]
    say(f"--- user {user.user_id}: {_profile(user.user_id, profiles)}")
    say(f"history: {user.num_interactions} items; the last {len(latest)}, newest first: {'; '.join(latest)}")
    say(f"description (from {user.source}): {user.description}")
    pairs = list(zip(user.neighbour_ids, user.neighbour_similarities, strict=True))[:NUM_NEIGHBOURS]
    near = "; ".join(f"{each} ({_profile(each, profiles)}, cosine {similarity:.2f})" for each, similarity in pairs)
    say(f"nearest users: {near or 'none'}")
    for rank, each in enumerate(served.recommend(user, NUM_RECOMMENDATIONS), start=1):
        say(f"{rank:>4}. {each.title:<45.45} {each.reason}")
