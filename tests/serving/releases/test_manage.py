"""Publishing, keeping, refusing and rolling back releases."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grasp import partitions, tables
from grasp.feature_store import release_store_file
from grasp.manifest import MANIFEST_FILE, PUBLISHED_FILE, Manifest, NoReleaseError, manifest_in_force, release_folder
from grasp.partitions import MissingPartitionError
from grasp.settings import ROOT, Settings
from grasp.versions import Versions, feast_project
from serving.releases.in_force import HISTORY_FILE, Checkpoint, ReleaseError, releases_on_disk, rollback_targets
from serving.releases.manage import main, restore_day, rollback, verify, verify_all
from serving.releases.publication import NUM_KEPT, choose_model, publish
from training.model.artefact import FORMAT

DAY, NEXT_DAY, FAR_DAY = "1998-03-01", "1998-03-02", "2998-12-31"
STEPS = [
    "items staged",
    "model staged",
    "verified",
    "manifest written",
    "synced",
    "in place",
    "remembered",
    "current written",
    "in force",
]


class CrashError(Exception):
    """The process dies here."""


def put(settings: Settings, day: str = DAY, model: Path | None = None, decision: Path | None = None) -> Manifest:
    return publish(settings, day, choose_model(settings, model, decision))


def files_of(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content, except the lock file."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_release_without_a_model_is_popular(settings, write_day):
    write_day(settings)

    manifest = put(settings)

    assert manifest.model is None
    assert manifest_in_force(settings.releases) == manifest
    assert manifest.collections["item"] == f"item_texts_{Versions(settings).embedding}"
    assert [path.name for path in (release_folder(settings.releases, manifest) / "items").iterdir()] == [
        "part-0.parquet"
    ]


def test_publishing_the_same_content_again_changes_no_file(settings, settings_with, write_day, make_model):
    write_day(settings)
    put(settings, model=make_model(settings))
    before = files_of(settings.releases)

    put(settings_with(now="1998-03-09T00:00:00Z"))

    assert files_of(settings.releases) == before


def test_the_next_day_keeps_the_model(settings, write_day, make_model):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    put(settings, DAY, model=make_model(settings))

    manifest = put(settings, NEXT_DAY)

    assert (manifest.day, manifest.model) == (NEXT_DAY, "tiny-ranker")
    verify(settings)


def test_a_model_of_other_features_is_not_kept_and_the_reason_is_printed(
    settings, settings_with, write_day, make_model, capsys
):
    write_day(settings)
    put(settings, model=make_model(settings))
    changed = settings_with(num_neighbours=3)
    write_day(changed, NEXT_DAY)

    manifest = put(changed, NEXT_DAY)

    assert manifest.model is None
    assert "tiny-ranker was trained with features" in capsys.readouterr().out


def test_a_model_of_other_features_is_refused_when_named(settings, write_day, make_model):
    write_day(settings)
    before = put(settings)

    with pytest.raises(ValueError, match="the model has feature_version v0_other"):
        put(settings, model=make_model(settings, version="v0_other"))

    assert manifest_in_force(settings.releases) == before


def test_a_model_for_vectors_of_another_width_is_refused(settings, write_day, make_model):
    write_day(settings)

    with pytest.raises(ValueError, match="need 5 columns"):
        put(settings, model=make_model(settings, semantic_size=5))


def test_a_promoted_model_is_published(settings, write_day, make_model, decision):
    write_day(settings)
    verdict = decision(model=str(make_model(settings)), promoted=True, reason="beats popularity")

    assert put(settings, decision=verdict).model == "tiny-ranker"


def test_a_model_that_was_not_promoted_leaves_the_old_one(settings, write_day, make_model, decision, capsys):
    write_day(settings)
    put(settings, model=make_model(settings, name="old"))
    new = make_model(settings, name="new")

    manifest = put(settings, decision=decision(model=str(new), promoted=False, reason="no better than popularity"))

    assert manifest.model == "old"
    assert "not promoted: no better than popularity" in capsys.readouterr().out


def test_a_model_in_an_old_format_is_replaced_by_popular_items(settings, write_day, make_model, monkeypatch, capsys):
    for day in (DAY, NEXT_DAY):
        write_day(settings, day)
    put(settings, model=make_model(settings, name="old"))
    monkeypatch.setattr("training.model.artefact.FORMAT", FORMAT + 1)

    manifest = put(settings, NEXT_DAY)

    assert manifest.model is None
    assert "old cannot be kept" in capsys.readouterr().out


def test_the_command_records_the_release_of_a_decision(settings, write_day, decision, monkeypatch):
    write_day(settings)
    file = decision(model=None, promoted=False, reason="no better than popularity")
    monkeypatch.setattr("sys.argv", ["release", "publish", "--day", DAY, "--decision", str(file)])
    for name, value in settings.variables().items():
        monkeypatch.setenv(name, value)

    main()

    recorded = json.loads(file.with_name(PUBLISHED_FILE).read_text())
    assert recorded == {"release": manifest_in_force(settings.releases).release_id}


@pytest.mark.parametrize(
    "content", [{"promoted": True, "reason": "no model"}, {"model": None, "promoted": "yes", "reason": "x"}]
)
def test_a_broken_decision_is_named(settings, write_day, decision, content):
    write_day(settings)

    with pytest.raises(ReleaseError, match=r"decision\.json is not a promotion decision"):
        put(settings, decision=decision(**content))


def test_a_missing_model_folder_is_named(settings, write_day, tmp_path):
    write_day(settings)

    with pytest.raises(ReleaseError, match=r"no model folder at .*nowhere"):
        put(settings, model=tmp_path / "nowhere")


def test_an_older_day_is_not_published_over_a_newer_one(settings, write_day, capsys):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    newer = put(settings, NEXT_DAY)

    assert put(settings, DAY) == newer
    assert manifest_in_force(settings.releases) == newer
    assert "back-filled, not published" in capsys.readouterr().out


def test_a_day_of_the_future_is_published_only_by_the_switch(settings, settings_with, write_day):
    write_day(settings, DAY)
    write_day(settings, FAR_DAY)
    before = put(settings, DAY)

    with pytest.raises(ReleaseError, match=f"{FAR_DAY} is not over by the wall clock.*GRASP_FUTURE_DAYS"):
        put(settings, FAR_DAY)
    with pytest.raises(ReleaseError, match="GRASP_FUTURE_DAYS"):
        restore_day(settings, FAR_DAY, put_online=lambda *_: None)
    assert manifest_in_force(settings.releases) == before
    assert put(settings_with(future_days=True), FAR_DAY).day == FAR_DAY


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_leaves_an_intact_release_in_force(settings, write_day, make_model, step):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    old = put(settings, DAY)

    def crash(reached: str) -> None:
        if reached == step:
            raise CrashError

    with pytest.raises(CrashError):
        publish(settings, NEXT_DAY, choose_model(settings, make_model(settings), None), crash)

    in_force = verify(settings)
    assert (in_force == old) == (step != "in force")
    assert put(settings, NEXT_DAY, model=make_model(settings)).day == NEXT_DAY
    assert verify(settings).model == "tiny-ranker"
    assert not list(settings.releases.glob(".staging-*"))


def killed(publication: Callable[[Checkpoint], object], step: str) -> bool:
    """Run a publication in a process that kills itself at a step; returns whether the kill ended it."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # of the child alone: it must not outlive the test
        try:
            publication(lambda reached: os.kill(os.getpid(), signal.SIGKILL) if reached == step else None)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_an_intact_release_in_force(settings, write_day, make_model, step):
    """No `finally` runs and no buffer is flushed, so only what is on disk remains."""
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    old = put(settings, DAY, model=make_model(settings, name="old"))
    choose = choose_model(settings, make_model(settings, name="new"), None)

    assert killed(lambda checkpoint: publish(settings, NEXT_DAY, choose, checkpoint), step)

    in_force = verify(settings)
    assert (in_force == old) == (step != "in force")
    assert set(verify_all(settings).values()) == {None}
    assert publish(settings, NEXT_DAY, choose).model == "new"
    assert (verify(settings).day, verify(settings).model) == (NEXT_DAY, "new")
    assert not list(settings.releases.glob(".staging-*"))


def test_the_crash_tests_cover_all_steps(settings, write_day):
    write_day(settings)
    reached: list[str] = []

    publish(settings, DAY, choose_model(settings, None, None), reached.append)

    assert reached == STEPS


def test_leftovers_of_a_killed_publication_are_removed(settings, write_day):
    write_day(settings)
    (settings.releases / ".staging-1" / "items").mkdir(parents=True)

    put(settings)

    assert not (settings.releases / ".staging-1").exists()


def test_a_day_without_features_is_named(settings, write_day):
    write_day(settings, DAY)

    with pytest.raises(MissingPartitionError, match="item_features has no partition for 1998-03-02"):
        put(settings, NEXT_DAY)


def test_an_incomplete_item_side_is_refused(settings, write_day):
    write_day(settings, item_ids=["i1", "i2"])
    items = partitions.partition_path(settings.lake, tables.ITEMS, None, DAY)
    partitions.write_content(items, partitions.Content(8, "8:test"))

    with pytest.raises(ReleaseError, match="item_features of 1998-03-01 has 2 items, table items has 8"):
        put(settings)


def test_replacing_the_day_in_the_lake_does_not_change_the_release(settings, write_day):
    write_day(settings)
    put(settings)
    for table, version in ((tables.ITEM_FEATURES, Versions(settings).feature), (tables.ITEMS, None)):
        partition = partitions.partition_path(settings.lake, table, version, DAY)
        partition.rename(partition.with_name("replaced"))
    write_day(settings, item_ids=["i1"])

    verify(settings)


def test_rollback_goes_to_the_release_before_and_forward_again(settings, write_day, make_model, capsys):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    first = put(settings, DAY)
    second = put(settings, DAY, model=make_model(settings))
    third = put(settings, NEXT_DAY)

    assert rollback(settings).release_id == second.release_id
    assert rollback(settings).release_id == first.release_id
    assert f"restore-day {DAY} --release {first.release_id}" in capsys.readouterr().out
    with pytest.raises(ReleaseError, match="has no release to roll back to"):
        rollback(settings)
    assert rollback(settings, third.release_id) == third
    assert len(releases_on_disk(settings.releases)) == 3


@pytest.fixture
def put_models(settings, write_day, make_model) -> Callable[..., list[str]]:
    """`put_models("a", "b")`: releases of one day, published one after the other, by id."""

    def publish_each(*names: str) -> list[str]:
        write_day(settings)
        return [put(settings, model=make_model(settings, name=name)).release_id for name in names]

    return publish_each


def test_rollback_skips_releases_that_were_rolled_back_from(settings, put_models):
    good, _bad = put_models("good", "bad")
    rollback(settings, good)
    put_models("worse")

    assert rollback(settings).release_id == good
    with pytest.raises(ReleaseError, match="has no release to roll back to"):
        rollback(settings)


def test_a_history_line_cut_off_by_a_crash_is_ignored(settings, put_models):
    first, second = put_models("one", "two")
    with (settings.releases / HISTORY_FILE).open("a") as file:
        file.write('\n{"relea')
    (third,) = put_models("three")

    assert [each.release_id for each in rollback_targets(settings.releases, third)] == [first, second]


@pytest.mark.parametrize("is_rolled_back", [False, True])
def test_without_a_history_file_rollback_follows_the_order_of_publication(settings, put_models, is_rolled_back):
    first, second = put_models("one", "two")
    if is_rolled_back:
        rollback(settings)
    (settings.releases / HISTORY_FILE).unlink()
    (third,) = put_models("three")

    way = [first] if is_rolled_back else [first, second]
    assert [each.release_id for each in rollback_targets(settings.releases, third)] == way


def test_a_damaged_manifest_is_left_out_with_a_message(settings, put_models, monkeypatch, capsys):
    first, second, third = put_models("one", "two", "three")
    (settings.releases / second / MANIFEST_FILE).write_text("{")

    command(settings, monkeypatch, "list")
    said = capsys.readouterr().out
    assert first in said
    assert f"left out: {settings.releases / second / MANIFEST_FILE} is not a release manifest" in said
    assert rollback(settings).release_id == first
    assert restore_day(settings, DAY, third, lambda *_: None).release_id == third
    put_models("four")


def test_a_damaged_current_manifest_is_replaced_by_a_rollback_to_a_release_and_by_a_publication(
    settings, write_day, put_models, monkeypatch, capsys
):
    first, _ = put_models("one", "two")
    write_day(settings, NEXT_DAY)

    (settings.releases / "current.json").write_text("{")
    with pytest.raises(ValueError, match="is not a release manifest"):
        rollback(settings)
    command(settings, monkeypatch, "list")
    assert rollback(settings, first).release_id == manifest_in_force(settings.releases).release_id == first
    (settings.releases / "current.json").write_text("{")
    assert (put(settings, NEXT_DAY).model, manifest_in_force(settings.releases).day) == ("one", NEXT_DAY)

    assert "current.json is not a release manifest" in capsys.readouterr().out


def test_a_refresh_after_a_rollback_keeps_the_earlier_model(settings, write_day, make_model):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    put(settings, DAY, model=make_model(settings, name="good"))
    put(settings, DAY, model=make_model(settings, name="bad"))
    rollback(settings)

    assert put(settings, NEXT_DAY).model == "good"


def test_rollback_to_an_unknown_release_lists_the_known_ones(settings, write_day):
    write_day(settings)
    manifest = put(settings)

    with pytest.raises(ReleaseError, match=f"no release nonsense; there are {manifest.release_id}"):
        rollback(settings, "nonsense")


def test_rollback_refuses_a_damaged_release(settings, write_day):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    first, second = put(settings, DAY), put(settings, NEXT_DAY)
    damage(release_folder(settings.releases, first) / "items" / "part-0.parquet")

    with pytest.raises(ValueError, match=r"part-0\.parquet does not match its checksum"):
        rollback(settings)
    assert manifest_in_force(settings.releases) == second


def test_verify_names_the_damaged_file_and_publishing_again_repairs_it(settings, write_day, make_model):
    write_day(settings)
    model = make_model(settings)
    manifest = put(settings, model=model)
    damage(release_folder(settings.releases, manifest) / "model" / "vocabulary.json")

    with pytest.raises(ValueError, match=r"vocabulary\.json does not match its checksum"):
        verify(settings)
    put(settings, model=model)
    verify(settings)


@pytest.mark.parametrize("name", ["items/part-0.parquet", "catalogue/part-0.parquet"])
def test_a_damaged_file_shared_with_the_lake_is_not_published(settings, write_day, name):
    write_day(settings)
    manifest = put(settings)
    file = release_folder(settings.releases, manifest) / name
    with file.open("r+b") as shared:  # under all of its names
        shared.seek(-1, os.SEEK_END)
        shared.write(b" ")

    with pytest.raises(ReleaseError, match=f"{name} was changed after {manifest.release_id} was published"):
        put(settings)


def test_any_release_can_be_verified_and_all_of_them(settings, write_day):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    first, second = put(settings, DAY), put(settings, NEXT_DAY)
    assert verify(settings, first.release_id) == first
    damage(release_folder(settings.releases, first) / "items" / "part-0.parquet")

    with pytest.raises(ValueError, match=r"part-0\.parquet does not match its checksum"):
        verify(settings, first.release_id)
    assert verify(settings) == second
    problems = verify_all(settings)
    assert list(problems) == ["current.json", first.release_id, second.release_id]
    assert "does not match its checksum" in problems[first.release_id]
    assert (problems["current.json"], problems[second.release_id]) == (None, None)


def test_a_manifest_that_was_changed_is_named(settings, write_day):
    """The release id is a hash of the content, so a changed day or model is detected."""
    write_day(settings)
    manifest = put(settings)
    file = release_folder(settings.releases, manifest) / MANIFEST_FILE
    file.write_text(json.dumps(asdict(replace(manifest, model="other"))))

    with pytest.raises(ValueError, match=f"manifest in .*{manifest.release_id} was changed"):
        verify(settings, manifest.release_id)


@pytest.mark.parametrize("asked", ["show", "verify"])
def test_asking_for_an_unknown_release_names_the_known_ones(settings, write_day, monkeypatch, asked):
    with pytest.raises(SystemExit, match="no release nonsense; there is none"):
        command(settings, monkeypatch, asked, "nonsense")
    write_day(settings)
    manifest = put(settings)

    with pytest.raises(SystemExit, match=f"no release nonsense; there are {manifest.release_id}"):
        command(settings, monkeypatch, asked, "nonsense")


class TestRestoreDay:
    @pytest.fixture
    def released(self, settings, write_day, make_model) -> tuple[Manifest, Manifest, Manifest]:
        """Two releases of the first day, then one of the next."""
        write_day(settings, DAY)
        write_day(settings, NEXT_DAY)
        return (
            put(settings, DAY, model=make_model(settings, name="one")),
            put(settings, DAY, model=make_model(settings, name="two")),
            put(settings, NEXT_DAY),
        )

    def test_features_first_and_the_manifest_last(self, settings, released):
        _, second, third = released
        seen: list[tuple[str, Manifest]] = []

        restore_day(settings, DAY, put_online=lambda _, day: seen.append((day, manifest_in_force(settings.releases))))

        assert seen == [(DAY, third)]
        assert manifest_in_force(settings.releases) == second

    def test_a_release_of_the_day_can_be_chosen(self, settings, released):
        first, _, third = released

        assert restore_day(settings, DAY, first.release_id, lambda *_: None) == first
        with pytest.raises(ReleaseError, match=f"no release {third.release_id}"):
            restore_day(settings, DAY, third.release_id, lambda *_: None)

    def test_a_failed_materialisation_leaves_the_release_in_force(self, settings, released):
        def fail(_: Settings, day: str) -> None:
            raise ReleaseError(f"the features of {day} are not online")

        with pytest.raises(ReleaseError, match="are not online"):
            restore_day(settings, DAY, put_online=fail)
        assert manifest_in_force(settings.releases) == released[2]

    def test_a_damaged_release_is_refused_before_features_change(self, settings, released):
        damage(release_folder(settings.releases, released[1]) / "items" / "part-0.parquet")
        moved: list[str] = []

        with pytest.raises(ValueError, match="does not match its checksum"):
            restore_day(settings, DAY, put_online=lambda _, day: moved.append(day))
        assert moved == []

    def test_features_of_another_version_are_refused_by_name(self, settings_with, released):
        with pytest.raises(ReleaseError, match=r"the settings make v.*rollback --to"):
            restore_day(settings_with(num_neighbours=3), DAY, put_online=lambda *_: None)

    def test_a_day_without_release_and_features_is_named(self, settings, released):
        with pytest.raises(MissingPartitionError, match="item_features has no partition for 1998-02-01"):
            restore_day(settings, "1998-02-01", put_online=lambda *_: None)
        assert manifest_in_force(settings.releases) == released[2]

    def test_a_day_without_a_release_gets_one_when_the_wrong_release_is_the_only_one(
        self, settings, settings_with, write_day, make_model
    ):
        for day in (DAY, NEXT_DAY, FAR_DAY):
            write_day(settings, day)
        wrong = put(settings_with(future_days=True), FAR_DAY, model=make_model(settings))
        assert put(settings, DAY) == wrong
        with pytest.raises(ReleaseError, match="restore-day DAY"):
            rollback(settings)
        online: list[str] = []

        restored = restore_day(settings, DAY, put_online=lambda _, day: online.append(day))

        assert (restored.day, restored.model, online) == (DAY, "tiny-ranker", [DAY])
        assert verify(settings) == restored
        assert put(settings, NEXT_DAY).day == NEXT_DAY
        assert rollback(settings) == restored
        with pytest.raises(ReleaseError, match=f"{restored.release_id} has no release to roll back to"):
            rollback(settings)

    def test_what_was_in_force_before_the_wrong_release_is_the_way_back_from_a_restored_day(
        self, settings, settings_with, write_day, make_model
    ):
        for day in (DAY, NEXT_DAY, FAR_DAY):
            write_day(settings, day)
        first = put(settings, DAY, model=make_model(settings))
        wrong = put(settings_with(future_days=True), FAR_DAY)

        restored = restore_day(settings, NEXT_DAY, put_online=lambda *_: None)

        assert rollback_targets(settings.releases, restored.release_id) == [first]
        assert rollback(settings, wrong.release_id) == wrong  # named, it can still be reached
        assert rollback(settings) == restored

    def test_features_that_are_too_old_are_named(self, settings_with, released, capsys):
        restore_day(settings_with(now="1998-03-09T00:00:00Z"), DAY, put_online=lambda *_: None)

        assert "answers are marked stale_features" in capsys.readouterr().out


def damage(file: Path) -> None:
    """Replace a file by a damaged copy; the hard link in the lake keeps the good content."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-1])


def test_only_the_last_releases_are_kept(settings, write_day):
    days = [f"1998-03-{number:02d}" for number in range(1, NUM_KEPT + 3)]
    for day in days:
        write_day(settings, day)
        put(settings, day)

    assert [manifest.day for manifest in releases_on_disk(settings.releases)] == days[2:]
    verify(settings)


def test_the_release_before_is_kept_however_many_rollbacks_followed(settings, put_models):
    first, *_ = put_models("first")
    for number in range(NUM_KEPT + 1):
        put_models(f"model-{number}")
        if number < NUM_KEPT:
            rollback(settings)

    assert rollback(settings).release_id == first


@pytest.mark.parametrize("option", [[], ["--all"]])
def test_before_the_first_release_nothing_is_called_damaged(settings, monkeypatch, capsys, option):
    with pytest.raises(SystemExit, match=r"no release at .*publishes the first"):
        command(settings, monkeypatch, "verify", *option)
    assert "DAMAGED" not in capsys.readouterr().out
    with pytest.raises(NoReleaseError):
        verify(settings)


def test_a_release_folder_that_was_lost_is_called_damaged(settings, write_day, monkeypatch, capsys):
    write_day(settings)
    shutil.rmtree(release_folder(settings.releases, put(settings)))

    with pytest.raises(SystemExit, match="1 of 1 are damaged"):
        command(settings, monkeypatch, "verify", "--all")
    assert "current.json is DAMAGED" in capsys.readouterr().out


def test_the_command_line_publishes_and_lists(settings, write_day, environment):
    write_day(settings)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serving.releases.manage", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert run("status").stderr.startswith("error: no release at")
    assert run("publish", "--day", DAY).returncode == 0
    manifest = manifest_in_force(settings.releases)
    assert f"* {manifest.release_id}" in run("list").stdout
    assert "stale" not in run("status").stdout
    environment.pop("GRASP_NOW")
    assert "stale, 74 h is the limit" in run("status").stdout


def test_the_command_line_shows_what_a_release_consists_of(settings, write_day, make_model, monkeypatch, capsys):
    write_day(settings)
    manifest = put(settings, model=make_model(settings))

    command(settings, monkeypatch, "show", manifest.release_id)

    said = capsys.readouterr().out
    items = release_folder(settings.releases, manifest) / "items" / "part-0.parquet"
    for text in (
        "in force: yes",
        f"feature_service {manifest.feature_service}",
        f"Milvus collection of items {manifest.collections['item']}",
        f"items/part-0.parquet {items.stat().st_size:,} bytes",
        "model by recipe tiny",
    ):
        assert text in said


def test_the_command_line_fails_when_any_release_is_damaged(settings, write_day, monkeypatch, capsys):
    write_day(settings, DAY)
    write_day(settings, NEXT_DAY)
    first, _ = put(settings, DAY), put(settings, NEXT_DAY)
    command(settings, monkeypatch, "verify")
    command(settings, monkeypatch, "verify", "--all")
    damage(release_folder(settings.releases, first) / "items" / "part-0.parquet")

    with pytest.raises(SystemExit, match="1 of 3 are damaged"):
        command(settings, monkeypatch, "verify", "--all")
    assert f"{first.release_id} is DAMAGED" in capsys.readouterr().out


def test_plain_feast_follows_what_is_put_in_force(settings, settings_with, write_day, monkeypatch):
    """Two releases of two feature versions."""
    later = settings_with(num_neighbours=3)
    for each, day in ((settings, DAY), (later, NEXT_DAY)):
        write_day(each, day)
        command(each, monkeypatch, "publish", "--day", day)
        assert f"project: {feast_project(Versions(each).feature)}\n" in release_store_file(settings).read_text()

    command(later, monkeypatch, "rollback")

    assert f"project: {feast_project(Versions(settings).feature)}\n" in release_store_file(settings).read_text()


def command(settings: Settings, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["release", *arguments])
    for name, value in settings.variables().items():
        monkeypatch.setenv(name, value)
    main()
