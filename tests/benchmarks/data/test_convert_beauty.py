"""Ids and order follow S3-Rec's Beauty file."""

import gzip
import json

import pytest

from benchmarks.data.convert_beauty import convert, main


def test_users_follow_the_file_and_equal_times_keep_their_order(tmp_path):
    reviews = [("B", "x", 9), ("A", "x", 5), ("B", "z", 1), ("B", "y", 9)]
    lines = [json.dumps({"reviewerID": user, "asin": asin, "unixReviewTime": time}) for user, asin, time in reviews]
    (tmp_path / "reviews.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    meta = [{"asin": "x", "title": "It's", "brand": "OPI", "categories": [["Beauty", "Nails"]]}, {"asin": "other"}]
    (tmp_path / "meta.gz").write_bytes(gzip.compress("\n".join(map(repr, meta)).encode()))

    convert(tmp_path / "reviews.gz", tmp_path / "meta.gz", tmp_path / "out")

    interactions = gzip.decompress((tmp_path / "out" / "interactions.tsv.gz").read_bytes()).decode()
    assert interactions.splitlines() == ["user_id\titem_id\ttimestamp", "1\t1\t1", "1\t2\t9", "1\t3\t9", "2\t2\t5"]
    catalogue = gzip.decompress((tmp_path / "out" / "items.jsonl.gz").read_bytes()).decode()
    items = [json.loads(line) for line in catalogue.splitlines()]
    assert items[:2] == [
        {"item_id": 1, "asin": "z", "title": "", "brand_and_categories": []},
        {"item_id": 2, "asin": "x", "title": "It's", "brand_and_categories": ["OPI", "Nails"]},
    ]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*reviews\.gz"):
        main([str(tmp_path / "reviews.gz"), str(tmp_path / "meta.gz"), str(tmp_path / "out")])
