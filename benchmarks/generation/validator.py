"""How well the validator separates usable outputs of a language model from the others.

    python -m benchmarks.generation.validator [--split tune|held_out]

Reads:   tests/data/labelled_outputs.jsonl and known_values.json (tests/data/README.md says how they were labelled)
Prints:  precision and recall of what the validator accepts, by split and by model, and the reasons of its refusals
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grasp.settings import ROOT
from spark_jobs.generation.live_generation import build_evidence
from spark_jobs.generation.prompts import ITEM, USER
from spark_jobs.validation.checks import clean_output, refusal_reason

DATA = ROOT / "tests" / "data"
SPLITS = ("tune", "held_out")


@dataclass(frozen=True)
class Verdict:
    """One labelled output and the validator's answer to it."""

    id: str
    split: str
    model: str
    is_usable: bool
    reason: str | None  # the validator's, None when it accepts

    @property
    def is_right(self) -> bool:
        return self.is_usable == (self.reason is None)


@dataclass(frozen=True)
class Score:
    """Precision: the share of accepted outputs that is usable. Recall: the share of usable outputs that is accepted."""

    num_outputs: int
    num_usable: int
    num_accepted: int
    num_right: int  # accepted and usable
    refused: dict[str, tuple[int, int]]  # by reason: rightly and wrongly

    @property
    def precision(self) -> float:
        return self.num_right / self.num_accepted if self.num_accepted else 0.0

    @property
    def recall(self) -> float:
        return self.num_right / self.num_usable if self.num_usable else 0.0


def judge(data: Path = DATA, splits: Sequence[str] = SPLITS) -> list[Verdict]:
    """The validator's verdicts, as the description jobs would have them."""
    known_values = json.loads((data / "known_values.json").read_text())
    lines = (data / "labelled_outputs.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [
        Verdict(row["id"], row["split"], row["model"], row["label"], _reason(row, known_values[row["catalogue"]]))
        for row in rows
        if row["split"] in splits
    ]


def _reason(row: dict[str, Any], known_values: list[str]) -> str | None:
    subject = ITEM if row["entity"] == "item" else USER
    return refusal_reason(clean_output(row["output"]), build_evidence(subject, row["facts"], known_values))


def score(verdicts: Sequence[Verdict]) -> Score:
    right = Counter(verdict.reason for verdict in verdicts if verdict.reason and verdict.is_right)
    wrong = Counter(verdict.reason for verdict in verdicts if verdict.reason and not verdict.is_right)
    accepted = [verdict for verdict in verdicts if verdict.reason is None]
    return Score(
        len(verdicts),
        sum(verdict.is_usable for verdict in verdicts),
        len(accepted),
        sum(verdict.is_usable for verdict in accepted),
        {reason: (right[reason], wrong[reason]) for reason in sorted(right | wrong)},
    )


def measure() -> dict[str, Any]:
    """Precision and recall on the texts that the validator was not tuned on."""
    found = score(judge(splits=("held_out",)))
    counts = {name: getattr(found, name) for name in ("num_outputs", "num_accepted", "num_usable")}
    return counts | {"precision": found.precision, "recall": found.recall}


def table(verdicts: Sequence[Verdict]) -> str:
    """Scores by split and model, then the reasons of all refusals."""
    lines = ["| split | model | outputs | usable | accepted | precision | recall |", "|---|---|---|---|---|---|---|"]
    for split in SPLITS:
        for model in ("all", *sorted({verdict.model for verdict in verdicts})):
            found = score([each for each in verdicts if each.split == split and model in ("all", each.model)])
            if found.num_outputs:
                figures = f"{found.num_outputs} | {found.num_usable} | {found.num_accepted}"
                lines.append(f"| {split} | {model} | {figures} | {found.precision:.3f} | {found.recall:.3f} |")
    lines += ["", "| refused for | rightly | wrongly |", "|---|---|---|"]
    lines += [f"| {reason} | {right} | {wrong} |" for reason, (right, wrong) in score(verdicts).refused.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation.validator", description="Measure the validator"
    )
    parser.add_argument("--split", choices=SPLITS, help="only this part of the labelled outputs")
    split = parser.parse_args().split
    print(table(judge(splits=(split,) if split else SPLITS)))


if __name__ == "__main__":
    main()
