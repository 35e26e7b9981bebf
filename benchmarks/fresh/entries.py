"""The trainings that say what fresh features are worth, by data set and protocol.

All systems have one width and one dropout: trials for each of them would cost more than all else. GRASP is trained with
the takers of the last days as a part of its softmax (`training/fitting/takers_offset.py`), and once more without them:
this is what it is without fresh features. So are its rivals, trained in GRASP's way. LLMInit is also there as its
authors have it, without history kernel and fresh features.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from benchmarks.core.command import MOVIELENS
from benchmarks.data.protocols import Protocol
from benchmarks.quality.comparison import GRASP
from benchmarks.quality.matrix import MatrixEntry, as_grasp, trained_entry
from benchmarks.quality.rows import Addition, Row
from training.fitting.recipes import recipe

FRESH, RIVALS = "fresh", "rivals"  # sections of rows
IDS, LLM_INIT = "sasrec", "sasrec_llm_init"
UNTAUGHT = "no_takers_offset"  # the ablation of a system that is trained without takers
AS_GRASP = "as_grasp"  # that of a rival that is trained in GRASP's way
AS_GRASP_UNTAUGHT = f"{AS_GRASP},{UNTAUGHT}"
BEST_WIDTH = "best_width"  # that of LLMInit as published, its width chosen on validation
WEEKLY = "weekly"  # that of weights that are trained anew every week
BLOCK_DAYS = 7
NO_TAKERS: dict[str, object] = {"takers_offset": ()}
SETTINGS: dict[str, object] = {"width": 128, "dropout": 0.5}
LLM_INIT_WIDTHS = (64, 128, 256)

MOVIELENS_FOLDER = "movielens-100k"
PROTOCOLS: tuple[Protocol, ...] = ("global-time", "shuffled-ties", "published")
MOVIELENS_PROTOCOLS: tuple[Protocol, ...] = ("global-time", "shuffled-ties")
CHOSEN: tuple[Addition, ...] = ("takers", "fresh", "fresh_chosen")
ADDITIONS: dict[Protocol, tuple[Addition, ...]] = {  # of GRASP, trained with takers
    "global-time": (*CHOSEN, "takers_frozen", "fresh_frozen", "stored", "stored_permuted"),
    "shuffled-ties": CHOSEN,
    "published": ("fresh", "fresh_chosen"),
}
OF_UNTAUGHT: tuple[Addition, ...] = ("kernel", "takers", "fresh")
OF_RIVALS: tuple[Addition, ...] = ("takers", "fresh")


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
    yield _entry(GRASP, seed, CHOSEN if is_movielens else ADDITIONS[protocol])
    yield _entry(GRASP, seed, OF_UNTAUGHT, ablation=UNTAUGHT, switches=NO_TAKERS)
    if is_movielens or protocol == "shuffled-ties":
        return
    yield _llm_init_as_published(seed, tries_widths)
    if protocol == "global-time":
        taught = as_grasp() | {"takers_offset": recipe(GRASP).takers_offset}
        for model in (IDS, LLM_INIT):
            untaught = _entry(model, seed, OF_UNTAUGHT, RIVALS, ablation=AS_GRASP_UNTAUGHT, switches=taught | NO_TAKERS)
            yield from (untaught, _entry(model, seed, OF_RIVALS, RIVALS, ablation=AS_GRASP, switches=taught))


def _llm_init_as_published(seed: int, tries_widths: bool) -> MatrixEntry:
    entry = _entry(LLM_INIT, seed, ("none",), ablation=BEST_WIDTH if tries_widths else "")
    trials = tuple(SETTINGS | {"width": width} for width in LLM_INIT_WIDTHS) if tries_widths else ()
    return replace(entry, trials=trials)


def _entry(
    model: str,
    seed: int,
    additions: tuple[Addition, ...],
    section: str = FRESH,
    *,
    ablation: str = "",
    switches: Mapping[str, object] = MappingProxyType({}),
) -> MatrixEntry:
    switches = {**switches, **SETTINGS}
    entry = trained_entry(model, seed, section, ablation=ablation, switches=switches, additions=additions)
    return replace(entry, tuned_as="")


def has_weekly(data: str, protocol: Protocol) -> bool:
    """Whether GRASP is also trained anew every week."""
    return data != MOVIELENS and protocol == "global-time"


def weekly_row(row: Row) -> Row:
    """The row of GRASP's weekly weights, beside a row of the same seed with the weights of the cut."""
    return replace(row, section=WEEKLY, addition="fresh", ablation=WEEKLY)
