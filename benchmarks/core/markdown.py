"""How the report writes its numbers down: cells, tables and folded parts of Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.core.summary import Figure
from training.evaluation.evaluate import Interval

NUM_NAMED = 5  # of names that a line has room for


def span(found: Interval) -> str:
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def goals(figures: Mapping[str, Figure]) -> list[str]:
    """Figures beside their goals; one that was not measured is not met."""
    rows = [
        [
            name,
            "–" if figure.value is None else number(figure.value),
            f"{figure.goal.direction} {figure.goal.bound:g}",
            "yes" if figure.goal.is_met(figure.value) else "no",
        ]
        for name, figure in figures.items()
    ]
    return table(["figure", "value", "goal", "met"], rows)


def number(value: float) -> str:
    """Four figures; thousands in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def first_named(names: Sequence[str], separator: str = ", ") -> str:
    """The first few of some names in brackets, after a space; nothing of none."""
    if not names:
        return ""
    shown = [f"`{name}`" for name in names[:NUM_NAMED]] + ["..."] * (len(names) > NUM_NAMED)
    return f" ({separator.join(shown)})"


def folded(title: str, lines: Sequence[str]) -> list[str]:
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "</details>", ""]
