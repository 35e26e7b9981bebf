"""Precision and recall of the validator on labelled outputs: those it was tuned on, and those held out.

`tests/data/README.md` says how they were labelled. A failure lists the outputs that the validator judges wrongly.
"""

import json

import pytest

from grasp.settings import ROOT
from spark_jobs.generation.live_generation import build_evidence
from spark_jobs.generation.prompts import ITEM, USER
from spark_jobs.validation.checks import clean_output, refusal_reason

DATA = ROOT / "tests" / "data"
ROWS = [json.loads(line) for line in (DATA / "labelled_outputs.jsonl").read_text().splitlines()]
KNOWN_VALUES = json.loads((DATA / "known_values.json").read_text())


def reason_of(row: dict) -> str | None:
    """Why the validator refuses an output, as in the description jobs; None when it accepts it."""
    subject = ITEM if row["entity"] == "item" else USER
    evidence = build_evidence(subject, row["facts"], KNOWN_VALUES[row["catalogue"]])
    return refusal_reason(clean_output(row["output"]), evidence)


@pytest.mark.parametrize(("split", "precision", "recall"), [("tune", 0.97, 0.93), ("held_out", 0.94, 0.85)])
def test_precision_and_recall_do_not_change(split, precision, recall):
    judged = [(row, reason_of(row)) for row in ROWS if row["split"] == split]
    accepted = [row for row, reason in judged if reason is None]
    num_right = sum(row["label"] for row in accepted)
    wrong = [(row["id"], row["model"], reason) for row, reason in judged if row["label"] != (reason is None)]
    assert num_right / len(accepted) >= precision, wrong
    assert num_right / sum(row["label"] for row, _ in judged) >= recall, wrong


def test_the_labels_are_complete():
    assert len(ROWS) >= 240
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert all(bool(row["reason"]) != row["label"] for row in ROWS)
    assert 0.3 < sum(row["split"] == "held_out" for row in ROWS) / len(ROWS) < 0.35
