"""Write what was measured of descriptions: how many pass, what they take, and whether they serve.

    python -m benchmarks.descriptions.report DIR

Reads:   measurements.jsonl in DIR
Writes:  summary.json in DIR and the report beside it, DIR with `.md`; again on the same measurements, the same files

Kinds of measurements: generation, retrieval, ranking.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.invocation import of_report
from benchmarks.core.machine import describe as describe_machine
from benchmarks.core.markdown import goals, table
from benchmarks.core.measurements import Measurements
from benchmarks.core.summary import Figure, Goal, write_summary
from grasp.progress import say
from training.evaluation.evaluate import Interval, interval

KINDS = ("generation", "retrieval", "ranking")
ARMS, CHANCE = ("facts", "llm"), "chance"
RECIPES = ("sasrec_grasp", "sasrec_grasp_described")
ADDITIONS = {"none": "", "kernel": " + kernel"}
GOALS = {
    "answered_share": Goal(1.0),
    "llm_over_facts_genre_share": Goal(1.0),
    "llm_over_facts_company": Goal(1.0),
    "llm_over_facts_next_item_share": Goal(1.0),
    "llm_over_facts_ndcg10": Goal(1.0),
    "llm_over_facts_described_ndcg10": Goal(1.0),
}
MEASURES = {"genre_share": "share a genre", "company": "company", "next_item_share": "have the next item"}


def report_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.md")


def write(folder: Path, command: str) -> None:
    """Write report and summary. Raises `FileNotFoundError` when nothing was measured in the folder."""
    measurements = Measurements(folder)
    if not measurements.all():
        raise FileNotFoundError(f"no measurement in {measurements.file}: run python -m benchmarks.descriptions first")
    commits = measurements.commits()
    machine = measurements.all()[0].conditions.machine
    lines = [
        "# Descriptions by a small language model, and by facts",
        "",
        f"- Machine: {describe_machine(machine)}.",
        f"- Command: `{command}`",
        f"- Source: commit {commits}.",
        "- Data: MovieLens-100K, leave-one-out; users are described from the items that train alone.",
        "- *facts*: the deterministic descriptions. *llm*: those of SmolLM2-135M-Instruct that the validator accepted, "
        "and facts for all others, as a refresh would publish them.",
        "",
        *verdict(measurements),
        *goals(figures(measurements)),
        *generation_section(measurements.of("generation")),
        *retrieval_section(measurements.of("retrieval")),
        *ranking_section(measurements),
    ]
    report_file(folder).write_text("\n".join(lines).rstrip() + "\n")
    write_summary(folder, command, figures(measurements), measured_on=machine, measured_at=commits)


def figures(measurements: Measurements) -> dict[str, Figure]:
    """The figures with a goal; one whose measurement is missing has no value."""
    values: dict[str, float | None] = dict.fromkeys(GOALS)
    for found in measurements.of("generation"):
        num_asked = sum(each["num_answers"] + each["num_unanswered"] for each in found.values())
        values["answered_share"] = sum(each["num_answers"] for each in found.values()) / max(1, num_asked)
    near = {each["arm"]: each for each in measurements.of("retrieval") if not each["passed_only"]}
    if near.keys() >= set(ARMS):
        for measure in MEASURES:
            values[f"llm_over_facts_{measure}"] = near["llm"][measure] / near["facts"][measure]
    for model, name in zip(RECIPES, ("ndcg10", "described_ndcg10"), strict=True):
        facts, llm = (_ndcg(measurements, model, arm, "kernel") for arm in ARMS)
        if len(facts) and len(llm):
            values[f"llm_over_facts_{name}"] = float(llm.mean() / facts.mean())
    return {name: Figure(values[name], goal) for name, goal in GOALS.items()}


def verdict(measurements: Measurements) -> list[str]:
    """One plain sentence on whether the rankers gain."""
    found = [each for model in RECIPES for each in _differences(measurements, model).values()]
    if not found:
        return []
    num_better, num_worse = sum(each.is_better for each in found), sum(each.is_worse for each in found)
    says = f"of {len(found)} comparisons of rankers {num_better} are better with the model's texts, {num_worse} worse"
    noise = "beyond noise: the interval over users is clear of zero and every seed agrees"
    if not num_better:
        return [f"**So small a model does not help:** {says}, {noise}.", ""]
    return [
        f"**{'It helps' if not num_worse else 'It helps some rankers and harms others'}:** {says}, {noise}.",
        "",
    ]


def generation_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    if not measured:
        return []
    [found] = measured
    rows = [[name, *(value(each) for each in found.values())] for name, value in TAKEN.items()]
    reasons = sorted({reason for each in found.values() for reason in each["reasons"]})
    failures = [
        [reason, *(_share(each["reasons"].get(reason, 0), _num_asked(each)) for each in found.values())]
        for reason in reasons
    ]
    ranges = sorted({key for each in found.values() for key in each["asked_by_history"]}, key=_first_number)
    histories = [[name, *(_failed(each, name) for each in found.values())] for name in ranges]
    return [
        "## What the model wrote",
        "",
        *table(["", *(f"{entity}s" for entity in found)], rows),
        "Why texts failed, as shares of those that were asked for:",
        "",
        *table(["reason", *(f"{entity}s" for entity in found)], failures),
        "Failed texts by the interactions of a user, or users of an item, that train:",
        "",
        *table(["history", *(f"{entity}s" for entity in found)], histories),
    ]


TAKEN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "texts asked for": lambda each: f"{_num_asked(each):,}",
    "accepted": lambda each: f"{each['num_accepted']:,} ({_share(each['num_accepted'], _num_asked(each))})",
    "asked once more, of these accepted": lambda each: f"{each['num_repairs']:,}, {each['num_repaired']:,}",
    "calls": lambda each: f"{each['num_calls']:,}",
    "tokens of prompts": lambda each: f"{each['num_input_tokens']:,}",
    "tokens written": lambda each: f"{each['num_output_tokens']:,}",
    "cost at 0.10 and 0.40 a million tokens": lambda each: f"{each['cost']:.3f}",
    "minutes": lambda each: f"{each['wall_seconds'] / 60:.1f}",
}


def retrieval_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    if not measured:
        return []
    rows = [
        [
            each["arm"],
            f"{each['num_items']:,} items, {each['num_users']:,} users" + (", all written" * each["passed_only"]),
            *(f"{each[measure]:.4f}" for measure in MEASURES),
        ]
        for each in measured
    ]
    return [
        "## What lies near",
        "",
        "Ten nearest by cosine. *Company*: mean cosine of an item and its neighbours by common users. *Have the next "
        "item*: the share of a user's neighbours who have taken the user's test item. The last rows look only among "
        "what the model wrote a text for; *chance* draws neighbours at random.",
        "",
        *table(["texts", "among", *MEASURES.values()], rows),
    ]


def ranking_section(measurements: Measurements) -> list[str]:
    rows = []
    for model in RECIPES:
        for addition, found in _differences(measurements, model).items():
            cells = [_mean(_ndcg(measurements, model, arm, addition)) for arm in ARMS]
            hits = [f"{_hr(measurements, model, arm, addition):.4f}" for arm in ARMS]
            mean, low, high = found.over_users.mean, found.over_users.low, found.over_users.high
            shown = [f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]", ", ".join(f"{each:+.4f}" for each in found.by_seed)]
            rows.append([f"{model}{ADDITIONS[addition]}", *cells, *shown, *hits])
    if not rows:
        return []
    ndcg, hr = ([f"{metric}, {arm}" for arm in ARMS] for metric in ("NDCG@10", "HR@10"))
    header = ["ranker", *ndcg, "llm - facts", "by seed", *hr]
    epochs = [
        [model, *(", ".join(f"{each['num_epochs']}" for each in _rankings(measurements, model, arm)) for arm in ARMS)]
        for model in RECIPES
    ]
    return [
        "## How rankers do with them",
        "",
        "Full ranking without the user's history, mean over seeds ± their standard deviation; the difference with its "
        "95 % interval when users are drawn again. *sasrec_grasp* reads items' texts, *sasrec_grasp_described* users' "
        "as well.",
        "",
        *table(header, rows),
        "Epochs of each seed until validation had not risen for a while; one that ended early ranks worse for that "
        "alone:",
        "",
        *table(["ranker", *(f"epochs, {arm}" for arm in ARMS)], epochs),
    ]


@dataclass(frozen=True)
class Difference:
    """llm minus facts: over users, each one's values averaged over seeds first, and by seed."""

    over_users: Interval
    by_seed: np.ndarray

    @property
    def is_better(self) -> bool:
        return self.over_users.low > 0 and bool((self.by_seed > 0).all())

    @property
    def is_worse(self) -> bool:
        return self.over_users.high < 0 and bool((self.by_seed < 0).all())


def _differences(measurements: Measurements, model: str) -> dict[str, Difference]:
    """By addition; a seed that only one kind of text was tried with is left out of those by seed."""
    found = {}
    for addition in ADDITIONS:
        facts, llm = (_ndcg(measurements, model, arm, addition) for arm in ARMS)
        if len(facts) and len(llm):
            difference = llm.mean(axis=0) - facts.mean(axis=0)
            num_seeds = min(len(facts), len(llm))
            by_seed = llm[:num_seeds].mean(axis=1) - facts[:num_seeds].mean(axis=1)
            found[addition] = Difference(interval(difference, np.arange(len(difference))), by_seed)
    return found


def _ndcg(measurements: Measurements, model: str, arm: str, addition: str) -> np.ndarray:
    """NDCG@10 by seed and test event."""
    return np.array([each["found"][addition]["ndcg_at_10"] for each in _rankings(measurements, model, arm)])


def _hr(measurements: Measurements, model: str, arm: str, addition: str) -> float:
    return float(np.mean([each["found"][addition]["hr_at_10"] for each in _rankings(measurements, model, arm)]))


def _rankings(measurements: Measurements, model: str, arm: str) -> list[dict[str, Any]]:
    return [each for each in measurements.of("ranking") if (each["model"], each["arm"]) == (model, arm)]


def _mean(of_events: np.ndarray) -> str:
    of_seeds = of_events.mean(axis=1)
    deviation = f" ± {of_seeds.std(ddof=1):.4f}" if len(of_seeds) > 1 else ""
    return f"{of_seeds.mean():.4f}{deviation}"


def _num_asked(found: Mapping[str, Any]) -> int:
    return int(found["num_answers"] + found["num_unanswered"])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _failed(found: Mapping[str, Any], history: str) -> str:
    num = found["asked_by_history"].get(history, 0)
    return f"{_share(found['failed_by_history'].get(history, 0), num)} of {num:,}" if num else "–"


def _first_number(history: str) -> int:
    return int(history.partition("-")[0].rstrip("+"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.descriptions.report", description="report of a folder")
    parser.add_argument("folder", type=Path, help="folder with measurements.jsonl")
    folder = parser.parse_args().folder
    try:
        write(folder, of_report("python -m benchmarks.descriptions", folder))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    say(f"report: {report_file(folder)}")


if __name__ == "__main__":
    main()
