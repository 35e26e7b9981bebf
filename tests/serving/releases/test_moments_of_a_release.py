"""The moments that a release carries."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.days import plus_days
from grasp.manifest import Manifest, release_folder
from grasp.settings import Settings
from serving.ranking.release_ranker import load_release_ranker
from serving.releases import publication
from serving.releases.in_force import ReleaseError
from serving.releases.manage import verify
from serving.releases.publication import choose_model, publish

DAY, NEXT_DAY = "1998-03-01", "1998-03-02"


@pytest.fixture
def write_moments(settings, write_day) -> Callable[..., None]:
    """`write_moments(days_ago=2, num=3)`: so many moments of a day before `DAY`, or after it."""

    def write(days_ago: int, num: int = 1, taken: str = "i1") -> None:
        moments = [(f"u{number}", taken, ["i2"]) for number in range(num)]
        write_day(settings, plus_days(DAY, -days_ago), moments=moments)

    return write


@pytest.fixture
def put(make_model) -> Callable[..., Manifest]:
    """`put(settings)`: publish a day with a model that reads votes."""

    def put(settings: Settings, day: str = DAY, **weights: float) -> Manifest:
        model = make_model(settings, **({"vote_weight": 1.0} | weights))
        return publish(settings, day, choose_model(settings, model, None))

    return put


def days_of(settings: Settings, manifest: Manifest) -> Sequence[str]:
    folder = release_folder(settings.releases, manifest) / "moments"
    return sorted(file.name.removesuffix("-part-0.parquet") for file in folder.iterdir())


def test_a_release_carries_the_last_days_and_nothing_later(settings, settings_with, write_moments, put):
    for days_ago in (-1, 0, 1, 3, 29, 30):
        write_moments(days_ago)

    manifest = put(settings)
    assert days_of(settings, manifest) == [plus_days(DAY, -each) for each in (29, 3, 1, 0)]
    assert len(load(settings, manifest)) == 4
    assert manifest.vote_rule == {"sharpness": 20.0, "text_share": 0.7, "min_voters": 3}
    assert {name for name in manifest.checksums if name.startswith("moments/")} == {
        f"moments/{day}-part-0.parquet" for day in days_of(settings, manifest)
    }


def test_the_number_of_days_is_a_setting(settings_with, write_day, put):
    settings = settings_with(moment_days=2)
    for day in (DAY, plus_days(DAY, -1), plus_days(DAY, -2)):
        write_day(settings, day, moments=[("u1", "i1", ["i2"])])

    assert days_of(settings, put(settings)) == [plus_days(DAY, -1), DAY]


def load(settings: Settings, manifest: Manifest):
    return load_release_ranker(release_folder(settings.releases, manifest), manifest)._moments


def test_a_model_that_reads_no_votes_needs_none(settings, write_moments, put):
    write_moments(0)

    manifest = put(settings, vote_weight=0.0, takers_weights=(1.0,) * 5)

    assert not (release_folder(settings.releases, manifest) / "moments").exists()
    assert manifest.vote_rule is None


def test_where_moments_are_off_a_release_has_none(settings_with, write_day, put):
    settings = settings_with(moments=False)
    write_day(settings, DAY, moments=[("u1", "i1", ["i2"])])

    manifest = put(settings)

    assert not (release_folder(settings.releases, manifest) / "moments").exists()
    assert (manifest.vote_rule, load(settings, manifest)) == (None, None)


def test_the_next_day_keeps_the_model_and_carries_its_own_moments(settings, write_moments, put):
    write_moments(0)
    put(settings)
    write_moments(-1)

    manifest = publish(settings, NEXT_DAY, choose_model(settings, None, None))

    assert (manifest.model, days_of(settings, manifest)) == ("tiny-ranker", [DAY, NEXT_DAY])


def test_of_too_many_moments_the_earliest_days_are_left_out(settings, write_moments, put, monkeypatch, capsys):
    monkeypatch.setattr(publication, "MAX_MOMENTS", 5)
    for days_ago, num in ((0, 2), (1, 3), (2, 1)):
        write_moments(days_ago, num)

    assert days_of(settings, put(settings)) == [plus_days(DAY, -1), DAY]
    assert "5 moments of 2 days vote" in capsys.readouterr().out


def test_replacing_a_day_in_the_lake_does_not_change_the_release(settings, write_moments, put):
    write_moments(0, 2)
    write_moments(1, 2)
    manifest = put(settings)
    place = partitions.table_path(settings.lake, tables.MOMENTS, None)
    shutil.rmtree(place)
    write_moments(1, 1, taken="i5")

    verify(settings)
    assert len(load(settings, manifest)) == 4


def replace_content(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b" ")


@pytest.mark.parametrize("damage", [Path.unlink, replace_content])
def test_a_missing_or_damaged_file_of_moments_is_refused(settings, write_moments, put, damage):
    write_moments(0)
    manifest = put(settings)
    name = f"{DAY}-part-0.parquet"

    damage(release_folder(settings.releases, manifest) / "moments" / name)

    with pytest.raises(ValueError, match=name):
        verify(settings)


def test_a_file_that_two_releases_share_and_that_was_changed_is_named_with_its_day(settings, write_moments, put):
    write_moments(1)
    write_moments(0)
    before = put(settings)
    write_moments(-1)
    day = plus_days(DAY, -1)
    shared = release_folder(settings.releases, before) / "moments" / f"{day}-part-0.parquet"
    shared.write_bytes(shared.read_bytes() + b" ")  # the lake's file is the same one

    with pytest.raises(ReleaseError, match=f"run `grasp refresh --day {day} --force`"):
        put(settings, NEXT_DAY)


def test_a_day_whose_moments_are_no_table_is_not_published(settings, write_moments, put):
    write_moments(0)
    place = partitions.partition_path(settings.lake, tables.MOMENTS, None, DAY)
    pq.write_table(
        pq.read_table(place / "part-0.parquet", partitioning=None).drop_columns(["item_id"]), place / "part-0.parquet"
    )

    with pytest.raises(ValueError, match="moments lacks the columns item_id"):
        put(settings)
