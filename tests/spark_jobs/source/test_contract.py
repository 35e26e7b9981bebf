"""What a source folder must hold. Errors name the folder or file and what is there."""

import pytest

from spark_jobs.source.contract import SourceError, find_table, require_table


def folder_with(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_text("item_id\n")
    return tmp_path


def test_a_missing_folder_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="GRASP_SOURCE"):
        find_table(tmp_path / "nowhere", "items")


def test_a_missing_table_says_what_is_there(tmp_path):
    folder = folder_with(tmp_path, "items.tsv")
    assert find_table(folder, "users") is None
    with pytest.raises(SourceError, match=r"holds no interactions .* it holds items\.tsv"):
        require_table(folder, "interactions")


def test_an_unknown_format_and_a_second_file_are_refused(tmp_path):
    folder = folder_with(tmp_path, "items.csv")
    with pytest.raises(SourceError, match=r"items\.csv: format \.csv is not one of \.tsv"):
        find_table(folder, "items")
    folder_with(tmp_path, "items.tsv")
    with pytest.raises(SourceError, match=r"items twice: items\.csv, items\.tsv"):
        find_table(folder, "items")


@pytest.mark.parametrize("name", ["x [1]", "x*", "x?", "{x}"])
def test_a_folder_means_itself_whatever_its_name(tmp_path, name):
    from spark_jobs.source.reader import plan_table, read_split

    for each in (name, "x1", "x2"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "items.tsv").write_text(f"item_id\n{each}\n")
    plan = plan_table(require_table(tmp_path / name, "items"))
    assert [row.fields for split in plan.splits for row in read_split(plan, split)] == [{"item_id": name}]
