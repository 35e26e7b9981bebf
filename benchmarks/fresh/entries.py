"""The trainings that say what fresh features are worth, by data set and protocol.

All systems have one width and one dropout: trials for each of them would cost more than all else. LLMInit is there
twice: trained in GRASP's way, and as its authors have it, without history kernel and fresh features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from benchmarks.core.command import MOVIELENS
from benchmarks.data.protocols import Protocol
from benchmarks.quality.comparison import GRASP
from benchmarks.quality.matrix import MatrixEntry, as_grasp, trained_entry
from benchmarks.quality.rows import Addition, Row

SECTION = "fresh"
IDS, LLM_INIT = "sasrec", "sasrec_llm_init"
TRAINED_AS_GRASP = "as_grasp"  # the ablation of a rival that is trained in GRASP's way
BEST_WIDTH = "best_width"  # that of LLMInit as published, its width chosen on validation
WEEKLY = "weekly"  # that of weights that are trained anew every week
BLOCK_DAYS = 7
SETTINGS: dict[str, object] = {"width": 128, "dropout": 0.5}
LLM_INIT_WIDTHS = (64, 128, 256)

MOVIELENS_FOLDER = "movielens-100k"
PROTOCOLS: tuple[Protocol, ...] = ("global-time", "shuffled-ties", "published")
MOVIELENS_PROTOCOLS: tuple[Protocol, ...] = ("global-time", "shuffled-ties")
CHOSEN: tuple[Addition, ...] = ("kernel", "takers", "fresh", "fresh_chosen")
OF_GRASP: dict[Protocol, tuple[Addition, ...]] = {
    "global-time": (*CHOSEN, "takers_frozen", "fresh_frozen", "fresh_permuted"),
    "shuffled-ties": CHOSEN,
    "published": ("kernel", "fresh", "fresh_chosen"),
}
OF_RIVALS: tuple[Addition, ...] = ("kernel", "takers", "fresh")


def short_name(folder: str) -> str:
    """The name of a data set in figures and folders."""
    return MOVIELENS if folder == MOVIELENS_FOLDER else folder


def protocols_of(data: str) -> tuple[Protocol, ...]:
    """The protocols that a data set is measured by; `data` is its short name, here and below."""
    return MOVIELENS_PROTOCOLS if data == MOVIELENS else PROTOCOLS


def entries_of(data: str, protocol: Protocol, seed: int, *, tries_widths: bool = False) -> list[MatrixEntry]:
    """The trainings of one seed. With `tries_widths` LLMInit as published has the width that validation chooses."""
    found = _entries(data, protocol, seed, tries_widths)
    return [replace(entry, row=replace(entry.row, protocol=protocol)) for entry in found]


def _entries(data: str, protocol: Protocol, seed: int, tries_widths: bool) -> Iterator[MatrixEntry]:
    is_movielens = data == MOVIELENS
    yield _entry(GRASP, seed, CHOSEN if is_movielens else OF_GRASP[protocol])
    if is_movielens or protocol == "shuffled-ties":
        return
    yield _llm_init_as_published(seed, tries_widths)
    if protocol == "global-time":
        for model in (IDS, LLM_INIT):
            yield _entry(model, seed, OF_RIVALS, ablation=TRAINED_AS_GRASP, switches=as_grasp())


def _llm_init_as_published(seed: int, tries_widths: bool) -> MatrixEntry:
    entry = _entry(LLM_INIT, seed, ("none",), ablation=BEST_WIDTH if tries_widths else "")
    trials = tuple(SETTINGS | {"width": width} for width in LLM_INIT_WIDTHS) if tries_widths else ()
    return replace(entry, trials=trials)


def _entry(
    model: str,
    seed: int,
    additions: tuple[Addition, ...],
    *,
    ablation: str = "",
    switches: Mapping[str, object] = MappingProxyType({}),
) -> MatrixEntry:
    switches = {**switches, **SETTINGS}
    entry = trained_entry(model, seed, SECTION, ablation=ablation, switches=switches, additions=additions)
    return replace(entry, tuned_as="")


def has_weekly(data: str, protocol: Protocol) -> bool:
    """Whether GRASP is also trained anew every week."""
    return data != MOVIELENS and protocol == "global-time"


def weekly_row(row: Row) -> Row:
    """The row of GRASP's weekly weights, beside one of its rows with the weights of the cut."""
    return replace(row, section=WEEKLY, addition="fresh", ablation=WEEKLY)
