"""The report of the quality checks: one page per run and a page that lists the runs.

<folder>/index.html              every run with its counts, latest day first
<folder>/<day>-<kind>.html       what a run checked: rule, allowed and observed values, table by table
<folder>/<day>-<kind>.json       the counts of a run, for the list

The pages hold no script and load nothing, so they can be read without a network and sent by mail.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from grasp.files import replacing, write_json

PASSED, WARNING, FAILED = "passed", "warning", "failed"
_ORDER = {FAILED: 0, WARNING: 1, PASSED: 2}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; width: 100%; margin: 0 0 2rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #d8dee4; }
td { overflow-wrap: anywhere; }
.passed { color: #1a7f37; } .warning { color: #9a6700; } .failed { color: #cf222e; font-weight: 600; }
"""


@dataclass(frozen=True)
class Checked:
    """One expectation as a reader sees it."""

    table: str
    column: str  # empty for a rule about the whole table
    rule: str
    allowed: str
    observed: str
    result: str  # passed, warning or failed


@dataclass(frozen=True)
class Run:
    """The counts of one run."""

    name: str
    num_expectations: int
    num_failed: int
    num_warnings: int


def write_report(folder: Path, name: str, checked: Sequence[Checked]) -> Path:
    """Write the page of a run and the list of all runs; a run of the same name is replaced. Returns the run's page."""
    results = [each.result for each in checked]
    run = Run(name, len(checked), results.count(FAILED), results.count(WARNING))
    _write(folder / f"{name}.html", _page(f"Quality of {name}", _run(run, checked)))
    write_json(folder / f"{name}.json", asdict(run))
    runs = [Run(**json.loads(file.read_text())) for file in sorted(folder.glob("*.json"), reverse=True)]
    _write(folder / "index.html", _page("Quality checks", _list(runs)))
    return folder / f"{name}.html"


def _write(file: Path, text: str) -> None:
    with replacing(file) as handle:
        handle.write(text.encode())


def _run(run: Run, checked: Sequence[Checked]) -> str:
    ordered = sorted(checked, key=lambda each: (_ORDER[each.result], each.column))
    tables = sorted({each.table for each in checked})
    return f"<p>{_counts(run)}. <a href='index.html'>All runs</a></p>" + "".join(
        f"<h2>{escape(table)}</h2>" + _rows([each for each in ordered if each.table == table]) for table in tables
    )


def _rows(checked: Sequence[Checked]) -> str:
    cells = [
        (
            f"<span class='{each.result}'>{each.result}</span>",
            *map(escape, (each.column, each.rule, each.allowed, each.observed)),
        )
        for each in checked
    ]
    return _table(("result", "column", "rule", "allowed", "observed"), cells)


def _list(runs: Sequence[Run]) -> str:
    return _table(
        ("run", "result"),
        [(f"<a href='{escape(each.name)}.html'>{escape(each.name)}</a>", _counts(each)) for each in runs],
    )


def _counts(run: Run) -> str:
    result = FAILED if run.num_failed else WARNING if run.num_warnings else PASSED
    text = f"{run.num_expectations} expectations, {run.num_failed} failed, {run.num_warnings} warnings"
    return f"<span class='{result}'>{text}</span>"


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The cells of `rows` are HTML."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
