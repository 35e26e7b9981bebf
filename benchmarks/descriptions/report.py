"""The report of descriptions, from the measurements of a folder. It is written beside the folder, as FOLDER.md.

python -m benchmarks.descriptions.report DIR
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.core.report import Part, Report, Section, Table, Writer, measured, origin_of, with_interval
from benchmarks.core.store import Measurements
from benchmarks.core.summary import Figure, Found, Goal
from training.evaluation.metrics import Interval, bootstrap_interval

MODULE = "benchmarks.descriptions"
KINDS = ("generation", "retrieval", "ranking")
TEXTS, CHANCE = ("facts", "llm"), "chance"
RECIPES = ("sasrec_grasp", "sasrec_grasp_described")
ADDITIONS = {"none": "", "kernel": " + kernel"}
NEIGHBOUR_MEASURES = {"genre_share": "share a genre", "company": "company", "next_item_share": "have the next item"}
FIGURES = (
    "answered_share",
    *(f"llm_over_facts_{name}" for name in (*NEIGHBOUR_MEASURES, "ndcg10", "described_ndcg10")),
)


def build(folder: Path, command: str) -> Report:
    measurements = measured(folder, MODULE)
    return Report(
        "Descriptions by a small language model, and by facts",
        origin_of(measurements, command),
        facts=[
            "Data: MovieLens-100K, leave-one-out; users are described from the items that train alone.",
            "*facts*: the deterministic descriptions. *llm*: those of SmolLM2-135M-Instruct that the validator "
            "accepted, and facts for all others, as a refresh would publish them.",
        ],
        opening=verdict(measurements),
        figures=figures(measurements),
        sections=[
            generation_section(measurements.of("generation")),
            neighbours_section(measurements.of("retrieval")),
            ranking_section(measurements),
        ],
    )


def figures(measurements: Measurements) -> dict[str, Figure]:
    """Every figure, with the goal of at least 1; one whose measurement is missing has no value."""
    values: dict[str, float] = {}
    for found in measurements.of("generation"):
        num_asked = sum(map(_num_asked, found.values()))
        values["answered_share"] = sum(each["num_answers"] for each in found.values()) / max(1, num_asked)
    near = {each["arm"]: each for each in measurements.of("retrieval") if not each["passed_only"]}
    if near.keys() >= set(TEXTS):
        for name in NEIGHBOUR_MEASURES:
            values[f"llm_over_facts_{name}"] = near["llm"][name] / near["facts"][name]
    for model, name in zip(RECIPES, ("ndcg10", "described_ndcg10"), strict=True):
        facts, llm = (_ndcg(measurements, model, texts, "kernel") for texts in TEXTS)
        if len(facts) and len(llm):
            values[f"llm_over_facts_{name}"] = float(llm.mean() / facts.mean())
    return {name: Figure(values.get(name), Goal(1.0)) for name in FIGURES}


def verdict(measurements: Measurements) -> list[Part]:
    """One sentence on whether rankers gain."""
    found = [each for model in RECIPES for each in _differences(measurements, model).values()]
    if not found:
        return []
    num_better, num_worse = sum(each.is_better for each in found), sum(each.is_worse for each in found)
    if not num_better:
        answer = "So small a model does not help"
    else:
        answer = "It helps some rankers and harms others" if num_worse else "It helps"
    return [
        f"**{answer}:** of {len(found)} comparisons of rankers {num_better} are better with the model's texts, "
        f"{num_worse} worse, beyond noise: the interval over users is clear of zero and every seed agrees."
    ]


def generation_section(measured_ones: Sequence[Found]) -> Section | None:
    if not measured_ones:
        return None
    [found] = measured_ones
    header = [f"{entity}s" for entity in found]
    reasons = sorted({reason for each in found.values() for reason in each["reasons"]})
    ranges = sorted({key for each in found.values() for key in each["asked_by_history"]}, key=_first_number)
    failures = [
        [reason, *(_share(each["reasons"].get(reason, 0), _num_asked(each)) for each in found.values())]
        for reason in reasons
    ]
    return Section(
        "What the model wrote",
        [
            Table(["", *header], [[name, *map(value, found.values())] for name, value in EFFORT.items()]),
            "Why texts failed, as shares of those that were asked for:",
            Table(["reason", *header], failures),
            "Failed texts by the interactions of a user, or users of an item, that train:",
            Table(["history", *header], [[name, *(_failed(each, name) for each in found.values())] for name in ranges]),
        ],
    )


EFFORT: dict[str, Callable[[Found], str]] = {
    "texts asked for": lambda each: f"{_num_asked(each):,}",
    "accepted": lambda each: f"{each['num_accepted']:,} ({_share(each['num_accepted'], _num_asked(each))})",
    "asked once more, of these accepted": lambda each: f"{each['num_repairs']:,}, {each['num_repaired']:,}",
    "calls": lambda each: f"{each['num_calls']:,}",
    "tokens of prompts": lambda each: f"{each['num_input_tokens']:,}",
    "tokens written": lambda each: f"{each['num_output_tokens']:,}",
    "cost at 0.10 and 0.40 a million tokens": lambda each: f"{each['cost']:.3f}",
    "minutes": lambda each: f"{each['wall_seconds'] / 60:.1f}",
}


def neighbours_section(measured_ones: Sequence[Found]) -> Section | None:
    if not measured_ones:
        return None
    rows = [
        [
            each["arm"],
            f"{each['num_items']:,} items, {each['num_users']:,} users" + (", all written" * each["passed_only"]),
            *(f"{each[name]:.4f}" for name in NEIGHBOUR_MEASURES),
        ]
        for each in measured_ones
    ]
    return Section(
        "What lies near",
        [
            "Ten nearest by cosine. *Company*: mean cosine of an item and its neighbours by common users. *Have the "
            "next item*: the share of a user's neighbours who have taken the user's test item. The last rows look only "
            "among what the model wrote a text for; *chance* draws neighbours at random.",
            Table(["texts", "among", *NEIGHBOUR_MEASURES.values()], rows),
        ],
    )


def ranking_section(measurements: Measurements) -> Section | None:
    rows = [
        [
            f"{model}{ADDITIONS[addition]}",
            *(_mean(_ndcg(measurements, model, texts, addition)) for texts in TEXTS),
            with_interval(found.over_users, sign="+"),
            ", ".join(f"{each:+.4f}" for each in found.by_seed),
            *(f"{_hit_rate(measurements, model, texts, addition):.4f}" for texts in TEXTS),
        ]
        for model in RECIPES
        for addition, found in _differences(measurements, model).items()
    ]
    if not rows:
        return None
    ndcg, hit_rate = ([f"{metric}, {texts}" for texts in TEXTS] for metric in ("NDCG@10", "HR@10"))
    epochs = [
        [
            model,
            *(", ".join(f"{each['num_epochs']}" for each in _rankings(measurements, model, name)) for name in TEXTS),
        ]
        for model in RECIPES
    ]
    return Section(
        "How rankers do with them",
        [
            "Full ranking without the user's history, mean over seeds ± their standard deviation; the difference with "
            "its 95 % interval when users are drawn again. *sasrec_grasp* reads items' texts, *sasrec_grasp_described* "
            "users' as well.",
            Table(["ranker", *ndcg, "llm - facts", "by seed", *hit_rate], rows),
            "Epochs of each seed until validation had not risen for a while; one that ended early ranks worse for that "
            "alone:",
            Table(["ranker", *(f"epochs, {texts}" for texts in TEXTS)], epochs),
        ],
    )


@dataclass(frozen=True)
class Difference:
    """NDCG@10 with the model's texts minus NDCG@10 with facts."""

    over_users: Interval  # each user's values averaged over seeds first
    by_seed: np.ndarray

    @property
    def is_better(self) -> bool:
        return self.over_users.low > 0 and bool((self.by_seed > 0).all())

    @property
    def is_worse(self) -> bool:
        return self.over_users.high < 0 and bool((self.by_seed < 0).all())


def _differences(measurements: Measurements, model: str) -> dict[str, Difference]:
    """By addition. Seeds that were tried with one kind of text only do not count in `by_seed`."""
    found = {}
    for addition in ADDITIONS:
        facts, llm = (_ndcg(measurements, model, texts, addition) for texts in TEXTS)
        if len(facts) and len(llm):
            difference = llm.mean(axis=0) - facts.mean(axis=0)
            num_seeds = min(len(facts), len(llm))
            by_seed = llm[:num_seeds].mean(axis=1) - facts[:num_seeds].mean(axis=1)
            found[addition] = Difference(bootstrap_interval(difference, np.arange(len(difference))), by_seed)
    return found


def _ndcg(measurements: Measurements, model: str, texts: str, addition: str) -> np.ndarray:
    """NDCG@10 by seed and test event."""
    return np.array([each["found"][addition]["ndcg_at_10"] for each in _rankings(measurements, model, texts)])


def _hit_rate(measurements: Measurements, model: str, texts: str, addition: str) -> float:
    return float(np.mean([each["found"][addition]["hr_at_10"] for each in _rankings(measurements, model, texts)]))


def _rankings(measurements: Measurements, model: str, texts: str) -> list[Found]:
    return [each for each in measurements.of("ranking") if (each["model"], each["arm"]) == (model, texts)]


def _mean(ndcg_by_seed: np.ndarray) -> str:
    of_seeds = ndcg_by_seed.mean(axis=1)
    deviation = f" ± {of_seeds.std(ddof=1):.4f}" if len(of_seeds) > 1 else ""
    return f"{of_seeds.mean():.4f}{deviation}"


def _num_asked(found: Found) -> int:
    return int(found["num_answers"] + found["num_unanswered"])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _failed(found: Found, history: str) -> str:
    num = found["asked_by_history"].get(history, 0)
    return f"{_share(found['failed_by_history'].get(history, 0), num)} of {num:,}" if num else "–"


def _first_number(history: str) -> int:
    return int(history.partition("-")[0].rstrip("+"))


REPORT = Writer(MODULE, build, file_of=lambda folder: folder.with_name(f"{folder.name}.md"))

if __name__ == "__main__":
    REPORT.main()
