"""One row of a quality report, and the lines of results.jsonl that store it: one per ranking and group."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.data.protocols import Protocol
from training.evaluation.metrics import event_metrics
from training.evaluation.ranking import Ranks

FILTERED, UNFILTERED, SAMPLED = "filtered", "unfiltered", "sampled"  # SAMPLED: the mean over sampled_0, sampled_1, ...
OVERALL = "overall"
COLD_ITEMS, COLD_USERS, KNOWN_USERS = "cold items", "cold users", "known users"  # cold: first seen after the cut
DAYS = "days "  # since the cut, such as days 11-20
NUM_DECIMALS = 6  # of a stored metric
FILE_NAME_PART = re.compile(r"[A-Za-z0-9_.,=+-]*")

# The kernel with fresh features: takers of the last days; with `fresh` also the votes of recent moments that are
# similar to the ranker; with `stored` instead those of moments with similar texts and items. `_frozen`: nothing is
# known after the day before the cut. `_permuted`: the item vectors that moments are compared by are permuted.
# `_chosen`: the features that validation chooses.
FreshAddition = Literal["takers", "fresh", "takers_frozen", "fresh_frozen", "stored", "stored_permuted", "fresh_chosen"]
FRESH: tuple[FreshAddition, ...] = get_args(FreshAddition)
Addition = Literal["none", "kernel", "max_cosine", "star"] | FreshAddition  # added to the scores


@dataclass(frozen=True)
class Row:
    """One system of the matrix with one random seed. `section` is the report's section that asked for it first."""

    model: str
    seed: int
    section: str
    backbone: str = ""  # empty for a control, which is not trained
    enhancer: str = "none"
    addition: Addition = "none"
    corruption: float = 0.0  # share of descriptions and neighbours that was swapped before training
    ablation: str = ""  # the switch that differs from the recipe, such as k=5
    protocol: Protocol = "published"  # by which the events were split

    def __post_init__(self) -> None:
        for name in ("model", "addition", "ablation"):
            value = getattr(self, name)
            if not FILE_NAME_PART.fullmatch(value) or "__" in value:
                raise ValueError(f"{name} {value!r} must be usable in a file name, without a double underscore")

    @property
    def row_id(self) -> str:
        """Equal for rows of equal work, whichever section asks for them."""
        parts = [
            self.model,
            f"+{self.addition}" if self.addition != "none" else "",
            self.ablation,
            f"corruption={self.corruption:g}" if self.corruption else "",
            self.protocol if self.protocol != "published" else "",
            f"seed={self.seed}",
        ]
        return "__".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class RowInfo:
    """What a row cost, and where it comes from. Without training, counts are 0 and limits None."""

    wall_seconds: float
    cpu_seconds: float
    fresh_cpu_seconds: float | None = None  # of the CPU seconds, the choice of fresh features; None where none is made
    num_parameters: int = 0
    num_epochs: int = 0
    best_epoch: int = 0
    validation_ndcg_at_10: float | None = None  # of the trained model, without the row's addition
    num_trials: int  # settings that were tried on validation, with the chosen one
    num_threads: int
    commit: str
    data_checksum: str
    coverage_at_10: float  # share of the catalogue that is in anyone's first ten
    cross_category_share_at_10: float | None  # None when items have no category
    time_limit_seconds: float | None = None
    patience: int | None = None
    num_validation_users: int | None = None
    attention_mass: dict[str, float] | None = None  # mean mass by kind of input, such as clean and corrupted
    chosen: dict[str, Any] | None = None  # the settings that the trials chose
    recipe: dict[str, Any] | None = None  # all fields of the `TrainConfig`
    recipe_version: int | None = None  # None also for rows that were trained before versions were kept

    @property
    def is_cut_short(self) -> bool:
        """Ended by a limit of time or epochs, not by patience: a later epoch might have been better."""
        return self.patience is not None and self.num_epochs - self.best_epoch < self.patience


@dataclass(frozen=True)
class FinishedRow:
    row: Row
    info: RowInfo
    num_events: dict[str, int]  # by group
    metrics: dict[str, dict[str, dict[str, float]]]  # by ranking, group and metric

    def value(self, ranking: str, metric: str, group: str = OVERALL) -> float:
        """Mean of a metric over the events of a group; NaN for a group without events."""
        draws = of_ranking(self.metrics, ranking, self.row.row_id)
        return float(np.mean([found.get(group, {}).get(metric, np.nan) for found in draws]))


def of_ranking(by_name: Mapping[str, Any], ranking: str, row_id: str) -> list[Any]:
    """The entry of a ranking; for SAMPLED one for each draw. Raises `KeyError` when there is none."""
    is_draw = f"{SAMPLED}_"
    found = [
        each for name, each in by_name.items() if name == ranking or (ranking == SAMPLED and name.startswith(is_draw))
    ]
    if not found:
        raise KeyError(f"{row_id} has no ranking {ranking}, only {', '.join(by_name)}")
    return found


def to_lines(
    row: Row, rankings: Mapping[str, Ranks], groups: Mapping[str, np.ndarray], info: RowInfo
) -> list[dict[str, Any]]:
    """The lines of a row: one per ranking and group that has events. The recipe, which is long, is on the first one."""
    values = {ranking: event_metrics(ranks) for ranking, ranks in rankings.items()}
    pairs = [(ranking, group) for ranking in rankings for group, mask in groups.items() if mask.any()]
    return [
        {"row_id": row.row_id, "line": number, "num_lines": len(pairs)}
        | asdict(row)
        | {"ranking": ranking, "group": group, "num_events": int(groups[group].sum())}
        | {"metrics": {name: _mean(value[groups[group]]) for name, value in values[ranking].items()}}
        | asdict(info if number == 1 else replace(info, recipe=None))
        for number, (ranking, group) in enumerate(pairs, start=1)
    ]


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), NUM_DECIMALS)


def from_lines(lines: Sequence[Mapping[str, Any]]) -> FinishedRow:
    """A row from its lines. Lines from before there were other protocols call the ranking `protocol`."""
    if "ranking" not in lines[0]:
        lines = [{**line, "ranking": line["protocol"], "protocol": "published"} for line in lines]
    first = lines[0]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in lines:
        found.setdefault(line["ranking"], {})[line["group"]] = line["metrics"]
    row = Row(**{field.name: first[field.name] for field in fields(Row)})
    info = RowInfo(**{field.name: first[field.name] for field in fields(RowInfo) if field.name in first})
    return FinishedRow(row, info, {line["group"]: line["num_events"] for line in lines}, found)
