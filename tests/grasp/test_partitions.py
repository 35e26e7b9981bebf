"""A partition is replaced as a whole; a process that is killed meanwhile loses nothing."""

import pytest

from grasp import partitions, tables


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "lake" / "items" / "day=1998-03-01"
    folder.mkdir(parents=True)
    (folder / "part.parquet").write_text("old")
    return folder


@pytest.fixture
def staged(tmp_path):
    folder = tmp_path / "lake" / "_staging" / "day=1998-03-01"
    folder.mkdir(parents=True)
    (folder / "part.parquet").write_text("new")
    return folder


def test_a_staged_partition_replaces_the_old_one_and_leaves_nothing_behind(target, staged):
    partitions.put_in_place(staged, target)
    assert (target / "part.parquet").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_the_old_partition_stays_when_the_new_one_cannot_be_moved(target, tmp_path):
    with pytest.raises(FileNotFoundError):
        partitions.put_in_place(tmp_path / "never staged", target)
    assert (target / "part.parquet").read_text() == "old"


def test_a_partition_that_a_killed_process_moved_aside_is_recovered(target, tmp_path):
    target.rename(target.with_name(f".replaced-{target.name}"))
    partitions.recover(tmp_path / "lake")
    assert (target / "part.parquet").read_text() == "old"


def test_a_replaced_partition_is_not_recovered(target, staged, tmp_path):
    aside = target.with_name(f".replaced-{target.name}")
    target.rename(aside)
    staged.rename(target)
    partitions.recover(tmp_path / "lake")
    assert (target / "part.parquet").read_text() == "new"
    assert not aside.exists()


def test_a_day_of_an_appended_table_has_a_finished_file(tmp_path):
    """A process that is killed while it writes leaves a file whose name begins with a dot."""
    for day, name in (("1998-03-01", "part-1.parquet"), ("1998-03-02", ".part-2.parquet")):
        folder = partitions.partition_path(tmp_path, tables.OUTCOMES, None, day)
        folder.mkdir(parents=True)
        (folder / name).write_text("rows")
    assert partitions.days(tmp_path, tables.OUTCOMES, None) == ["1998-03-01"]
