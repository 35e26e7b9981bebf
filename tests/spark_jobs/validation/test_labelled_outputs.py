"""Precision and recall of the validator on labelled outputs, tuned and held out."""

import json

import pytest

from benchmarks.generation.validator import DATA, Verdict, judge, score, table

ROWS = [json.loads(line) for line in (DATA / "labelled_outputs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("split", "precision", "recall"), [("tune", 0.97, 0.93), ("held_out", 0.94, 0.85)])
def test_precision_and_recall_do_not_change(split, precision, recall):
    found = score(judge(splits=(split,)))
    assert found.precision >= precision
    assert found.recall >= recall


def test_the_labels_are_complete():
    assert len(ROWS) >= 240
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert all(bool(row["reason"]) != row["label"] for row in ROWS)
    assert 0.3 < sum(row["split"] == "held_out" for row in ROWS) / len(ROWS) < 0.35


def test_a_score_counts_accepted_texts_and_refusal_reasons():
    verdicts = [
        Verdict("1", "tune", "small", True, None),
        Verdict("2", "tune", "small", False, None),
        Verdict("3", "tune", "large", True, "loop"),
        Verdict("4", "tune", "large", False, "loop"),
    ]
    found = score(verdicts)
    assert (found.precision, found.recall) == (0.5, 0.5)
    assert found.refused == {"loop": (1, 1)}
    assert "| tune | large | 2 | 1 | 0 | 0.000 | 0.000 |" in table(verdicts).splitlines()
