"""The wheel is converted to a folder of the contract, always with the same bytes and without zip codes."""

import gzip
import json
import zipfile

import pytest

from spark_jobs.source.movielens import FOLDER_IN_WHEEL, convert

FILES = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n2\t7\t3\t881250949\n1\t7\t5\t881250949\n",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "7\tL\"Appât, Le\t1995\tChildren's Sci-Fi\n8\tunkonwn\tunknown\tunknown\n",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n",
}


@pytest.fixture
def wheel(tmp_path):
    file = tmp_path / "recbole.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for kind, text in FILES.items():
            archive.writestr(f"{FOLDER_IN_WHEEL}/ml-100k.{kind}", text)
    return file


def lines(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def test_rows_keep_the_source_order_and_lose_rating_and_zip_code(wheel, tmp_path):
    convert(wheel, tmp_path / "out")
    assert lines(tmp_path / "out" / "interactions.tsv.gz") == [
        "user_id\titem_id\ttimestamp\trow_number",
        "2\t7\t881250949\t1",
        "1\t7\t881250949\t2",
    ]
    assert lines(tmp_path / "out" / "users.tsv.gz") == ["user_id\tage\tgender\toccupation", "1\t24\tM\ttechnician"]


def test_genres_are_a_list_and_what_is_unknown_is_left_out(wheel, tmp_path):
    convert(wheel, tmp_path / "out")
    items = [json.loads(line) for line in lines(tmp_path / "out" / "items.jsonl.gz")]
    assert items == [
        {"item_id": "7", "title": 'L"Appât, Le', "year": "1995", "genres": ["Children's", "Sci-Fi"]},
        {"item_id": "8", "title": "unkonwn", "genres": []},
    ]


def test_the_same_wheel_gives_the_same_bytes(wheel, tmp_path):
    for name in ("one", "two"):
        convert(wheel, tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        content = file.read_bytes()
        assert content == (tmp_path / "two" / file.name).read_bytes()
        assert content[4:8] == bytes(4)  # gzip's time stamp


def test_another_file_is_named(tmp_path):
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(ValueError, match=r"other\.whl is not the recbole wheel"):
        convert(other, tmp_path / "out")
