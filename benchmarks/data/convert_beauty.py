"""Convert Amazon's Beauty 5-core reviews and metadata (2014) into a folder of the data contract.

    python -m benchmarks.data.convert_beauty reviews_Beauty_5.json.gz meta_Beauty.json.gz OUT_FOLDER

Ids follow S3-Rec. Users count from 1 in the order of the reviews file. Each user's reviews are sorted by time; equal
times keep the file's order. Items count from 1 in the order in which they then first appear.
"""

import argparse
import ast
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from grasp.progress import say


def read_reviews(path: Path) -> Iterator[tuple[str, str, int]]:
    """Interactions (user, item, unix time), user by user, oldest first."""
    by_user: dict[str, list[tuple[int, str]]] = {}
    with gzip.open(path, "rt") as file:
        for line in file:
            review = json.loads(line)
            by_user.setdefault(review["reviewerID"], []).append((int(review["unixReviewTime"]), review["asin"]))
    for user, reviews in by_user.items():
        for seconds, asin in sorted(reviews, key=lambda review: review[0]):
            yield user, asin, seconds


def read_facts(path: Path, wanted: dict[str, int]) -> dict[str, dict[str, object]]:
    """Title, brand and first category path of the wanted items. The file holds Python literals instead of JSON."""
    facts: dict[str, dict[str, object]] = {}
    with gzip.open(path, "rt") as file:
        for line in file:
            item = ast.literal_eval(line)
            if item["asin"] in wanted:
                brand = [item["brand"]] if item.get("brand") else []
                categories = (item.get("categories") or [[]])[0][1:]  # the first one is always Beauty
                facts[item["asin"]] = {
                    "title": item.get("title", ""),
                    "brand_and_categories": [*brand, *categories],
                }
    return facts


def convert(reviews: Path, meta: Path, out: Path) -> None:
    """Write `interactions.tsv.gz` and `items.jsonl.gz`."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    lines = ["user_id\titem_id\ttimestamp"]
    for user, asin, seconds in read_reviews(reviews):
        numbers = users.setdefault(user, len(users) + 1), items.setdefault(asin, len(items) + 1)
        lines.append(f"{numbers[0]}\t{numbers[1]}\t{seconds}")
    facts = read_facts(meta, items)
    nothing = {"title": "", "brand_and_categories": []}
    catalogue = [{"item_id": number, "asin": asin, **facts.get(asin, nothing)} for asin, number in items.items()]
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "interactions.tsv.gz", lines)
    _write(out / "items.jsonl.gz", [json.dumps(item, ensure_ascii=False) for item in catalogue])
    say(f"beauty: {len(lines) - 1:,} interactions, {len(items):,} items, {len(users):,} users in {out}")


def _write(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.convert_beauty", description="Amazon Beauty as a source"
    )
    parser.add_argument("reviews", type=Path, help="reviews_Beauty_5.json.gz")
    parser.add_argument("meta", type=Path, help="meta_Beauty.json.gz")
    parser.add_argument("out", type=Path, help="folder to write to")
    given = parser.parse_args(arguments)
    try:
        convert(given.reviews, given.meta, given.out)
    except (OSError, ValueError) as error:  # missing, no gzip file, not the reviews
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
