"""The moments that a release carries."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from grasp import partitions, tables
from grasp.days import plus_days
from grasp.manifest import Manifest, release_folder
from grasp.settings import Settings
from serving.ranking.release_ranker import load_release_ranker
from serving.releases import carried_moments
from serving.releases.manage import verify
from serving.releases.publication import choose_model, publish

DAY, NEXT_DAY = "1998-03-01", "1998-03-02"


@pytest.fixture
def write_moments(settings, write_day) -> Callable[..., None]:
    """`write_moments(days_ago=2, num=3)`: so many moments of a day before `DAY`, or after it."""

    def write(days_ago: int, num: int = 1, taken: str = "i1") -> None:
        moments = [(f"u{number}", taken, ["i2", f"i{number % 8 + 1}"]) for number in range(num)]
        write_day(settings, plus_days(DAY, -days_ago), moments=moments)

    return write


@pytest.fixture
def put(make_model) -> Callable[..., Manifest]:
    """`put(settings)`: publish a day with a model that reads state votes."""

    def put(settings: Settings, day: str = DAY, **weights: float) -> Manifest:
        model = make_model(settings, **({"state_vote_weight": 1.0} | weights))
        return publish(settings, day, choose_model(settings, model, None))

    return put


def rows_of(settings: Settings, manifest: Manifest) -> pa.Table:
    return pq.ParquetFile(folder_of(settings, manifest) / "moments.parquet").read()


def folder_of(settings: Settings, manifest: Manifest) -> Path:
    return release_folder(settings.releases, manifest) / "moments"


def days_of(settings: Settings, manifest: Manifest) -> list[str]:
    """The day of each moment."""
    return [each.date().isoformat() for each in rows_of(settings, manifest)["event_time"].to_pylist()]


def load(settings: Settings, manifest: Manifest):
    return load_release_ranker(release_folder(settings.releases, manifest), manifest)._moments


def test_a_release_carries_the_last_days_and_nothing_later(settings, write_moments, put):
    for days_ago in (-1, 0, 1, 3, 29, 30):
        write_moments(days_ago, num=2)

    manifest = put(settings)
    assert days_of(settings, manifest) == [plus_days(DAY, -each) for each in (29, 29, 3, 3, 1, 1, 0, 0)]
    assert rows_of(settings, manifest).column_names == list(tables.MOMENTS.column_names)
    assert len(load(settings, manifest)) == 8
    assert manifest.vote_rule == {"sharpness": 20.0, "text_share": 0.7, "min_voters": 3}
    named = {name for name in manifest.checksums if name.startswith("moments/")}
    assert named == {"moments/moments.parquet", "moments/states.npy"}


def test_a_state_is_that_of_the_model_after_the_known_items_oldest_first(settings, write_day, make_model, put):
    """As training computes it: no user's vectors, no gaps, half precision."""
    write_day(settings, plus_days(DAY, -1), moments=[("u2", "i1", ["i4"])])
    histories = [["i2"], ["gone", "i3", "gone", "i5"], ["gone"], [f"i{number}" for number in range(1, 9)]]
    write_day(settings, DAY, moments=[("u1", "gone", history) for history in histories])

    manifest = put(settings, max_length=6)

    ranker = load_release_ranker(release_folder(settings.releases, manifest), manifest)
    assert [each["history_item_ids"] for each in rows_of(settings, manifest).to_pylist()] == [
        ["i4"], ["i2"], ["gone", "i3", "gone", "i5"], histories[-1]
    ]  # fmt: skip
    nobody = torch.zeros(1, 6)
    expected = [
        ranker.model.last_state(torch.tensor([[ranker.items.row_of[each] + 1 for each in items]]), nobody, nobody)[0]
        for items in (["i4"], ["i2"], ["i5", "i3"], ["i6", "i5", "i4", "i3", "i2", "i1"])
    ]
    found = np.load(folder_of(settings, manifest) / "states.npy")
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, [each / each.norm() for each in expected], atol=1e-3)


def test_many_moments_are_computed_in_batches(settings, write_moments, put, monkeypatch, capsys):
    write_moments(0, 20)
    whole = np.load(folder_of(settings, put(settings)) / "states.npy")
    monkeypatch.setattr(carried_moments, "BATCH_SIZE", 3)
    monkeypatch.setattr(carried_moments, "SAY_EVERY", 9)
    write_moments(1, 1)

    in_batches = np.load(folder_of(settings, put(settings)) / "states.npy")

    np.testing.assert_allclose(in_batches[1:], whole, atol=1e-3)
    said = capsys.readouterr().out
    assert "states of 9 of 21 moments" in said and "states of 18 of 21 moments" in said
    assert "21 moments vote, their states took" in said


def test_publishing_again_takes_the_states_over_whatever_a_processor_rounds(
    settings, write_moments, put, monkeypatch, capsys
):
    write_moments(0, 3)
    manifest = put(settings)
    monkeypatch.setattr(carried_moments, "states_of", lambda *_: pytest.fail("they are known"))

    assert put(settings) == manifest
    assert f"3 moments vote, their states are those of {manifest.release_id}" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["model", "moments", "items", "states"])
def test_other_content_gets_states_of_its_own(settings, write_moments, put, monkeypatch, write_day, changed):
    write_moments(0, 3)
    manifest = put(settings)
    if changed == "moments":
        write_moments(1, 1)
    if changed == "items":
        write_day(settings, DAY, mark="Another title", moments=[("u1", "i1", ["i2"])])
    if changed == "states":
        replace_content(folder_of(settings, manifest) / "states.npy")
    computed: list[int] = []
    states_of = carried_moments.states_of
    monkeypatch.setattr(
        carried_moments, "states_of", lambda ranker, rows: computed.append(len(rows)) or states_of(ranker, rows)
    )

    again = put(settings, **({"state_vote_weight": 2.0} if changed == "model" else {}))

    assert len(computed) == 1
    assert len(load(settings, again)) == computed[0]


def test_the_number_of_days_is_a_setting(settings_with, write_day, put):
    settings = settings_with(moment_days=2)
    for day in (DAY, plus_days(DAY, -1), plus_days(DAY, -2)):
        write_day(settings, day, moments=[("u1", "i1", ["i2"])])

    assert days_of(settings, put(settings)) == [plus_days(DAY, -1), DAY]


@pytest.mark.parametrize("vote_weight", [0.0, 1.0])
def test_a_model_that_reads_no_state_votes_needs_none(settings, write_moments, put, vote_weight):
    """Its stored votes were made by a rule, too."""
    write_moments(0)

    manifest = put(settings, state_vote_weight=0.0, vote_weight=vote_weight, takers_weights=(1.0,) * 5)

    assert not folder_of(settings, manifest).exists()
    assert (manifest.vote_rule is not None) == bool(vote_weight)


def test_without_a_known_moment_a_release_has_none(settings, write_day, put, capsys):
    write_day(settings, DAY, moments=[("u1", "i1", ["gone"])])

    manifest = put(settings)

    assert not folder_of(settings, manifest).exists() and load(settings, manifest) is None
    assert "it has no moments, so the stored votes count" in capsys.readouterr().out


def test_where_moments_are_off_a_release_has_none(settings_with, write_day, put):
    settings = settings_with(moments=False)
    write_day(settings, DAY, moments=[("u1", "i1", ["i2"])])

    manifest = put(settings)

    assert not folder_of(settings, manifest).exists()
    assert (manifest.vote_rule, load(settings, manifest)) == (None, None)


def test_the_next_day_keeps_the_model_and_carries_its_own_moments(settings, write_moments, put):
    write_moments(0)
    put(settings)
    write_moments(-1)

    manifest = publish(settings, NEXT_DAY, choose_model(settings, None, None))

    assert (manifest.model, days_of(settings, manifest)) == ("tiny-ranker", [DAY, NEXT_DAY])


def test_of_too_many_moments_the_latest_are_kept(settings, write_moments, put, monkeypatch):
    monkeypatch.setattr(carried_moments, "MAX_STATES", 4)
    for days_ago, num in ((0, 2), (1, 3), (2, 1)):
        write_moments(days_ago, num)

    manifest = put(settings)

    assert days_of(settings, manifest) == [plus_days(DAY, -1)] * 2 + [DAY] * 2
    assert rows_of(settings, manifest)["user_id"].to_pylist() == ["u1", "u2", "u0", "u1"]


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
@pytest.mark.parametrize("name", ["moments.parquet", "states.npy"])
def test_a_missing_or_damaged_file_of_moments_is_refused(settings, write_moments, put, damage, name):
    write_moments(0)
    manifest = put(settings)

    damage(folder_of(settings, manifest) / name)

    with pytest.raises(ValueError, match=name):
        verify(settings)


def test_a_day_whose_moments_are_no_table_is_not_published(settings, write_moments, put):
    write_moments(0)
    file = partitions.partition_path(settings.lake, tables.MOMENTS, None, DAY) / "part-0.parquet"

    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["item_id"]), file)
    with pytest.raises(ValueError, match=f"{file.parent} lacks the columns item_id"):
        put(settings)
    file.write_text("not a table")
    with pytest.raises(ValueError, match=f"{file.parent} cannot be read as moments"):
        put(settings)
