"""The commands of `docs/backup.md` bring back the ledger, the registry, the releases and what is served."""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from feature_repo.materialise import materialise
from grasp import partitions, tables
from grasp.environment import process_environment
from grasp.manifest import manifest_in_force, release_folder
from grasp.settings import ROOT
from grasp.versions import Versions
from serving.lookup.online_store import FeastUserStore
from serving.releases.manage import verify_all
from serving.releases.publication import choose_model, publish

NEXT = "1998-03-02"

pytestmark = pytest.mark.integration


def blocks() -> list[str]:
    """The page's commands, in its order, for the day of this test."""
    found = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "backup.md").read_text(), re.DOTALL)
    return [block.replace("1998-04-22", NEXT) for block in found]


def run(block: str, folder: Path, environment: dict[str, str]) -> str:
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(*folders: Path) -> dict[str, str]:
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_was_destroyed_is_read_and_served_as_before(two_days, settings_with):
    settings = settings_with(now="1998-03-03T00:00:00Z")
    materialise(settings, Versions(settings).feature, NEXT)
    manifest = publish(settings, NEXT, choose_model(settings, None, None))
    training = settings.home / "training" / NEXT
    training.mkdir(parents=True)
    (training / "decision.json").write_text("{}")
    kept = (settings.lake, settings.releases, settings.home / "training")
    before, row = content(*kept), FeastUserStore(settings, manifest).get("u2")
    ledger = two_days.rows(tables.USER_GENERATION, NEXT)
    copy, restore = blocks()
    # A relative home, as .env.example has it.
    place, environment = settings.home.parent, process_environment(settings) | {"GRASP_HOME": settings.home.name}

    run(copy, place, environment)
    for folder in (*kept, settings.home / "feast"):
        shutil.rmtree(folder)
    said = run(restore, place, environment)

    assert content(*kept) == before
    assert two_days.rows(tables.USER_GENERATION, NEXT) == ledger and len(ledger) == 2
    assert manifest_in_force(settings.releases) == manifest and manifest.release_id in said
    assert set(verify_all(settings).values()) == {None}
    restored = FeastUserStore(settings, manifest).get("u2")
    assert restored is not None and row is not None
    assert (restored.sequence, restored.description) == (row.sequence, row.description)
    assert restored.semantic_embedding.tolist() == row.semantic_embedding.tolist()
    lake = partitions.partition_path(settings.lake, tables.ITEM_FEATURES, Versions(settings).feature, NEXT)
    released = release_folder(settings.releases, manifest) / "items" / "part-00000.parquet"
    assert released.samefile(lake / "part-00000.parquet")


@pytest.mark.parametrize("home", ["", "{folder}/.grasp"], ids=["unset", "absolute"])
def test_the_archive_lies_in_the_home_in_use_and_holds_its_files(tmp_path, home):
    (tmp_path / ".grasp" / "lake").mkdir(parents=True)
    (tmp_path / ".grasp" / "lake" / "rows").write_text("1")
    copy, _ = blocks()
    run(copy, tmp_path, dict(os.environ) | {"GRASP_HOME": home.format(folder=tmp_path)})
    with tarfile.open(tmp_path / ".grasp" / "grasp-backup.tar.gz") as archive:
        assert archive.getnames() == ["lake", "lake/rows"]
