"""The report of descriptions, from the measurements of a folder. It is written beside the folder, as FOLDER.md.

    python -m benchmarks.descriptions.report DIR

All kinds of measurements must be there: `generation`, `retrieval` (nearest neighbours) and `ranking`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.core.report import Report, Section, Table, Writer, measured, origin_of, with_interval
from benchmarks.core.store import Measurements
from benchmarks.core.summary import Figure, Found, Goal
from training.evaluation.metrics import bootstrap_interval

MODULE = "benchmarks.descriptions"
TEXTS = ("facts", "llm")
RECIPES = {"sasrec_grasp": "ndcg10", "sasrec_grasp_described": "described_ndcg10"}  # and the figure of each
ADDITIONS = {"none": "", "kernel": " + kernel"}
NEIGHBOUR_MEASURES = {"genre_share": "share a genre", "company": "company", "next_item_share": "have the next item"}


def build(folder: Path, command: str) -> Report:
    measurements = measured(folder, MODULE)
    comparisons = {
        (model, addition): Comparison(measurements, model, addition) for model in RECIPES for addition in ADDITIONS
    }
    return Report(
        "Descriptions by a small language model, and by facts",
        origin_of(measurements, command),
        facts=[
            "Data: MovieLens-100K, leave-one-out; users are described from the items that train alone.",
            "*facts*: the deterministic descriptions. *llm*: those of SmolLM2-135M-Instruct that the validator "
            "accepted, and facts for all others, as a refresh would publish them.",
        ],
        opening=[verdict(list(comparisons.values()))],
        figures=figures(measurements, comparisons),
        sections=[
            generation_section(measurements.of("generation")[-1]),
            neighbours_section(measurements.of("retrieval")),
            ranking_section(comparisons),
        ],
    )


class Comparison:
    """A ranker's NDCG@10 with either kind of text, by seed and test event, and llm minus facts."""

    def __init__(self, measurements: Measurements, model: str, addition: str) -> None:
        self.runs = {
            texts: [each for each in measurements.of("ranking") if (each["model"], each["arm"]) == (model, texts)]
            for texts in TEXTS
        }
        found = {texts: [each["found"][addition] for each in runs] for texts, runs in self.runs.items()}
        self.ndcg = {texts: np.array([each["ndcg_at_10"] for each in runs]) for texts, runs in found.items()}
        self.hit_rate = {texts: np.mean([each["hr_at_10"] for each in runs]) for texts, runs in found.items()}
        of_users = self.ndcg["llm"].mean(axis=0) - self.ndcg["facts"].mean(axis=0)  # averaged over seeds first
        self.over_users = bootstrap_interval(of_users, np.arange(len(of_users)))
        self.by_seed = self.ndcg["llm"].mean(axis=1) - self.ndcg["facts"].mean(axis=1)

    @property
    def is_better(self) -> bool:
        return self.over_users.low > 0 and bool((self.by_seed > 0).all())

    @property
    def is_worse(self) -> bool:
        return self.over_users.high < 0 and bool((self.by_seed < 0).all())

    def mean(self, texts: str) -> str:
        of_seeds = self.ndcg[texts].mean(axis=1)
        return f"{of_seeds.mean():.4f} ± {of_seeds.std(ddof=1):.4f}"


def verdict(comparisons: list[Comparison]) -> str:
    """One sentence on whether rankers gain."""
    num_better, num_worse = sum(each.is_better for each in comparisons), sum(each.is_worse for each in comparisons)
    answer = "It helps some rankers and harms others" if num_worse else "It helps"
    return (
        f"**{answer if num_better else 'So small a model does not help'}:** of {len(comparisons)} comparisons of "
        f"rankers {num_better} are better with the model's texts, {num_worse} worse, beyond noise: the interval over "
        "users is clear of zero and every seed agrees."
    )


def figures(measurements: Measurements, comparisons: dict[tuple[str, str], Comparison]) -> dict[str, Figure]:
    """Every figure has the goal of at least 1."""
    generated = measurements.of("generation")[-1].values()
    near = {each["arm"]: each for each in measurements.of("retrieval") if not each["passed_only"]}
    values = {"answered_share": sum(each["num_answers"] for each in generated) / sum(map(_num_asked, generated))}
    values |= {f"llm_over_facts_{name}": near["llm"][name] / near["facts"][name] for name in NEIGHBOUR_MEASURES}
    for model, name in RECIPES.items():
        ndcg = comparisons[model, "kernel"].ndcg
        values[f"llm_over_facts_{name}"] = float(ndcg["llm"].mean() / ndcg["facts"].mean())
    return {name: Figure(value, Goal(1.0)) for name, value in values.items()}


def generation_section(found: Found) -> Section:
    entities, header = list(found.values()), [f"{entity}s" for entity in found]
    reasons = sorted({reason for each in entities for reason in each["reasons"]})
    histories = sorted({key for each in entities for key in each["asked_by_history"]}, key=_first_number)
    effort: dict[str, Callable[[Found], str]] = {
        "texts asked for": lambda each: f"{_num_asked(each):,}",
        "accepted": lambda each: f"{each['num_accepted']:,} ({_share(each['num_accepted'], _num_asked(each))})",
        "asked once more, of these accepted": lambda each: f"{each['num_repairs']:,}, {each['num_repaired']:,}",
        "calls": lambda each: f"{each['num_calls']:,}",
        "tokens of prompts": lambda each: f"{each['num_input_tokens']:,}",
        "tokens written": lambda each: f"{each['num_output_tokens']:,}",
        "cost at 0.10 and 0.40 a million tokens": lambda each: f"{each['cost']:.3f}",
        "minutes": lambda each: f"{each['wall_seconds'] / 60:.1f}",
    }
    failures = [
        [reason, *(_share(each["reasons"].get(reason, 0), _num_asked(each)) for each in entities)] for reason in reasons
    ]
    return Section(
        "What the model wrote",
        [
            Table(["", *header], [[name, *map(value, entities)] for name, value in effort.items()]),
            "Why texts failed, as shares of those that were asked for:",
            Table(["reason", *header], failures),
            "Failed texts by the interactions of a user, or users of an item, that train:",
            Table(["history", *header], [[name, *map(partial(_failed, name), entities)] for name in histories]),
        ],
    )


def neighbours_section(rows: Sequence[Found]) -> Section:
    shown = [
        [
            each["arm"],
            f"{each['num_items']:,} items, {each['num_users']:,} users" + (", all written" * each["passed_only"]),
            *(f"{each[name]:.4f}" for name in NEIGHBOUR_MEASURES),
        ]
        for each in rows
    ]
    return Section(
        "What lies near",
        [
            "Ten nearest by cosine. *Company*: mean cosine of an item and its neighbours by common users. *Have the "
            "next item*: the share of a user's neighbours who have taken the user's test item. The last rows look only "
            "among what the model wrote a text for; *chance* draws neighbours at random.",
            Table(["texts", "among", *NEIGHBOUR_MEASURES.values()], shown),
        ],
    )


def ranking_section(comparisons: dict[tuple[str, str], Comparison]) -> Section:
    rows = [
        [
            f"{model}{ADDITIONS[addition]}",
            *map(each.mean, TEXTS),
            with_interval(each.over_users, sign="+"),
            ", ".join(f"{difference:+.4f}" for difference in each.by_seed),
            *(f"{each.hit_rate[texts]:.4f}" for texts in TEXTS),
        ]
        for (model, addition), each in comparisons.items()
    ]
    ndcg, hit_rate = ([f"{metric}, {texts}" for texts in TEXTS] for metric in ("NDCG@10", "HR@10"))
    runs = {model: comparisons[model, "none"].runs for model in RECIPES}
    epochs = [
        [model, *(", ".join(f"{each['num_epochs']}" for each in of_model[texts]) for texts in TEXTS)]
        for model, of_model in runs.items()
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


def _num_asked(found: Found) -> int:
    return int(found["num_answers"] + found["num_unanswered"])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _failed(history: str, found: Found) -> str:
    num = found["asked_by_history"].get(history, 0)
    return f"{_share(found['failed_by_history'].get(history, 0), num)} of {num:,}" if num else "–"


def _first_number(history: str) -> int:
    return int(history.partition("-")[0].rstrip("+"))


REPORT = Writer(MODULE, build, file_of=lambda folder: folder.with_name(f"{folder.name}.md"))

if __name__ == "__main__":
    REPORT.main()
