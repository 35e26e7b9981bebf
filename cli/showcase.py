"""Show what the release in force says to three users, and where to look next."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import SecretStr

from grasp import partitions, tables
from grasp.manifest import manifest_in_force, release_folder
from grasp.progress import say
from grasp.settings import PREFIX, Settings
from grasp.versions import Versions
from serving.lookup.online_store import FeastUserStore, UserRow
from serving.ranking.release_ranker import ReleaseRanker, load_release_ranker

NUM_HISTORY, NUM_NEIGHBOURS, NUM_RECOMMENDATIONS = 8, 3, 10


def show(settings: Settings, cutoff: str, latest: str) -> None:
    """Print three users with their recommendations, the descriptions' sources, the gate's word and the next steps."""
    manifest = manifest_in_force(settings.releases)
    served = load_release_ranker(release_folder(settings.releases, manifest), manifest)
    lookup = FeastUserStore(settings, manifest)
    profiles = _profiles(settings, latest)
    for user_id in three_users(_user_rows(settings, latest)):
        user = lookup.get(user_id)
        if user is None:
            raise ValueError(
                f"user {user_id} has features of {latest} but no row online: materialise the day with --rollback"
            )
        _show_user(served, user, profiles)
    _show_sources(settings, latest)
    _show_gate(settings, cutoff, latest)
    _show_next(settings)


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


def _show_sources(settings: Settings, day: str) -> None:
    say("--- descriptions")
    for entity, described, ledger in (
        ("items", tables.ITEM_DESCRIPTION, tables.ITEM_GENERATION),
        ("users", tables.USER_DESCRIPTION, tables.USER_GENERATION),
    ):
        folder = partitions.require_partition(settings.lake, described, None, day)
        sources = pq.read_table(folder, columns=["source"], partitioning=None)["source"].to_pylist()
        accepted = [is_good for each in _ledger_partitions(settings, ledger) for is_good in _answers(each)]
        say(_sources(entity, sources, accepted))


def _sources(entity: str, sources: list[str], accepted: list[bool]) -> str:
    """Two counts that differ: who has a text today, and what was paid for on all days. Entities with equal facts share
    one text, and a text about facts that have changed since describes nobody any more.
    """
    return (
        f"{entity}: {len(sources)} described, {sources.count('llm')} by the language model from the facts of this day; "
        f"over all days {len(accepted)} texts were generated and {sum(accepted)} passed validation, "
        "those about earlier facts included"
    )


def _ledger_partitions(settings: Settings, ledger: tables.Table) -> list[Path]:
    days = partitions.days(settings.lake, ledger, None)
    return [partitions.partition_path(settings.lake, ledger, None, day) for day in days]


def _answers(partition: Path) -> list[bool]:
    """Whether each answer was accepted; calls that failed brought none."""
    rows = pq.read_table(partition, columns=["description", "error"], partitioning=None).to_pylist()
    return [row["description"] is not None for row in rows if row["error"] is None]


def _show_gate(settings: Settings, cutoff: str, latest: str) -> None:
    say("--- the model")
    folder = settings.home / "training" / latest
    decision = json.loads((folder / "decision.json").read_text())
    say(f"trained up to {cutoff}, judged on everything after it up to {latest}")
    evaluation = folder / "evaluation.json"  # absent when there was nothing to judge by
    figures = f"; {_figures(json.loads(evaluation.read_text()))}" if evaluation.exists() else ""
    say(f"{'promoted' if decision['promoted'] else 'NOT promoted'}: {decision['reason']}{figures}")
    manifest = manifest_in_force(settings.releases)
    served = manifest.model or "what is popular (no model passed the gate)"
    say(f"release {manifest.release_id} serves {served}")


def _figures(evaluation: dict[str, Any]) -> str:
    """NDCG@10 of everything that was judged, the candidate first, as `training.promote` wrote it."""
    means = {model: by_group["overall"]["ndcg@10"]["mean"] for model, by_group in evaluation["metrics"].items()}
    candidate = evaluation["candidate"]
    others = [f"{model} {mean:.4f}" for model, mean in means.items() if model != candidate]
    return f"NDCG@10 over {evaluation['num_events']:,} events: {', '.join([f'model {means[candidate]:.4f}', *others])}"


def _show_next(settings: Settings) -> None:
    say("--- where to look next")
    say(f"quality report     {settings.data_docs / 'index.html'}")
    say(f"training runs      {settings.home}/training/*/evaluation.md")
    command = " ".join([*changed_variables(settings), str(Path(sys.executable).with_name("grasp"))])
    say(f"tables in SQL      {command} sql    then ask: FROM item_features LIMIT 3")
    say(f"refused texts      {command} dead-letters list")
    say(f"serving            {command} serve    then http://{settings.host}:{settings.port}/explore and /docs")
    say(f"Airflow UI         {command} airflow    then http://127.0.0.1:{settings.airflow_port}")


def changed_variables(settings: Settings) -> list[str]:
    """`GRASP_*` assignments, quoted for a shell, that give these settings again. Secrets are left out."""
    is_usual_home = settings.home == Settings.load({}).home
    home = {} if is_usual_home else {"GRASP_HOME": str(settings.home)}
    usual = Settings.load(home)
    own = {
        PREFIX + name.upper(): settings.variables()[PREFIX + name.upper()]
        for name in Settings.model_fields
        if getattr(settings, name) != getattr(usual, name)
        and not isinstance(getattr(settings, name), SecretStr)
        and name != "task_retries"  # the demo alone does without
    }
    return [f"{name}={shlex.quote(value)}" for name, value in (home | own).items()]
