"""Remove online rows that nobody can read any more: of old feature versions, and of views that are not read online."""

from pathlib import Path
from typing import TYPE_CHECKING

from grasp.manifest import MANIFEST_FILE, read_manifest
from grasp.progress import say
from grasp.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from feast import FeatureStore, FeatureView

STATE_FILE = "online-{version}.json"
DELETE_BATCH = 1000  # keys


def state_file(settings: Settings, feature_version: str) -> Path:
    """Says which day of a feature version this installation put online; `feature_repo.materialise` writes it."""
    return settings.home / "feast" / STATE_FILE.format(version=feature_version)


def expired_versions(settings: Settings, current: str) -> list[str]:
    """Versions that this installation put online and that no release on disk has.

    Releases on disk can be rolled back to. None is expired without any release: their folder may not be mounted.
    Raises `ValueError` naming a manifest that cannot be read.
    """
    prefix, suffix = STATE_FILE.split("{version}")
    files = (settings.home / "feast").glob(STATE_FILE.format(version="*"))
    online = {file.name.removeprefix(prefix).removesuffix(suffix) for file in files}
    manifests = [*settings.releases.glob(f"[!.]*/{MANIFEST_FILE}"), *settings.releases.glob("current.json")]
    released = {read_manifest(file).feature_version for file in manifests}
    return sorted(online - {current} - released) if released else []


def remove_expired(settings: Settings, current: str) -> None:
    """Remove every expired version's online rows and Feast project. A damaged manifest keeps them all."""
    from feature_repo.feast_store import open_store

    try:
        expired = expired_versions(settings, current)
    except ValueError as error:
        say(f"materialise: no old feature version is removed: {error}")
        return
    for version in expired:
        store = open_store(settings, version)
        remove_rows(store, store.list_feature_views())
        if store.project in {project.name for project in store.list_projects()}:
            store.registry.delete_project(store.project, commit=True)
        state_file(settings, version).unlink()
        say(f"materialise: feature version {version} removed from the online store, no release has it")


def remove_rows(store: "FeatureStore", views: "Sequence[FeatureView]") -> None:
    """Remove all online rows of the views. Each view has an entity of its own.

    SQLite keeps the space in its file and uses it again.
    """
    if store.config.online_store.type == "redis":
        for view in views:
            _remove_redis_keys(store, view)
        return
    store.provider.online_store.update(
        config=store.config,
        tables_to_delete=views,
        tables_to_keep=[],
        entities_to_delete=[],
        entities_to_keep=[],
        partial=False,
    )


def _remove_redis_keys(store: "FeatureStore", view: "FeatureView") -> None:
    """In batches: Feast's own way collects one command for every key of the view in memory."""
    from feast.infra.online_stores.helpers import _redis_key_prefix

    client = store.provider.online_store._get_client(store.config.online_store)
    pattern = _redis_key_prefix(view.join_keys) + b"*" + store.project.encode()
    keys: Iterable[bytes] = client.scan_iter(pattern, count=DELETE_BATCH)
    batch: list[bytes] = []
    for key in keys:
        batch.append(key)
        if len(batch) == DELETE_BATCH:
            client.unlink(*batch)
            batch = []
    if batch:
        client.unlink(*batch)
