"""Write what the measurements of serving say: tables, the plot of the rates and the figures with a goal.

    python -m benchmarks.serving.report DIR

Reads:   measurements.jsonl in DIR
Writes:  report.md, rates.svg and summary.json in DIR; again on the same measurements, the same files

Of several measurements of a kind the last one counts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.core.invocation import of_report, write_again
from benchmarks.core.machine import describe as describe_machine
from benchmarks.core.markdown import goals, table
from benchmarks.core.measurements import MEASUREMENTS_FILE, Measurements
from benchmarks.core.plots import COLOURS, MARKERS, plot
from benchmarks.core.summary import Figure, Goal, write_summary

REPORT_FILE = "report.md"
PLOT_FILE = "rates.svg"
KINDS = (
    "added",
    "million",
    "materialise",
    "lookup",
    "recommend",
    "open_loop",
    "highest_rate",
    "switch",
    "fuzz",
    "soak",
)
GOAL_RATE = 250.0

Found = Mapping[str, Any]  # of one measurement


def _at_most(bound: float) -> Goal:
    return Goal(bound, "at most")


def _milliseconds(found: Found, name: str = "p99") -> float | None:
    """None when nothing was answered."""
    return found["milliseconds"] and found["milliseconds"][name]


# What a measurement has at least to be the goal's: a shorter or smaller one says nothing of it.
LEAST: dict[str, dict[str, float]] = {
    "million": {"num_items": 1_200_000},
    "recommend": {"num_items": 12_000},
    "open_loop": {"seconds": 60},
    "soak": {"seconds": 1800, "num_searches_by_milvus": 1},  # what never answered cannot be lost
}
# And what it has exactly: another rate is another load, more workers would compete for the cores.
EXACTLY: dict[str, dict[str, float]] = {
    "added": {"width": 64},
    "open_loop": {"rate": GOAL_RATE, "num_workers": 2},
    "highest_rate": {"num_workers": 2},
    "switch": {"num_workers": 2},
    "soak": {"num_workers": 2, "has_milvus": True},
}

# Each figure: its goal, the kind of measurement it is from, and its value there (None: it does not have one).
FIGURES: dict[str, tuple[Goal, str, Callable[[Found], float | None]]] = {
    "grasp_added_p50_ms": (_at_most(1.0), "added", lambda found: found["added_p50"]),
    "grasp_added_p99_ms": (_at_most(2.0), "added", lambda found: found["added_p99"]),
    "grasp_added_share": (_at_most(1.0), "added", lambda found: found["share"]),
    "million_p99_ms": (_at_most(40.0), "million", lambda found: found["index_p99"]),
    "million_recall_at_100": (Goal(0.98), "million", lambda found: found["recall"]),
    "lookup_speedup_over_feast_http": (Goal(2.0), "lookup", lambda found: found["times_faster_at_p50"]),
    "lookup_p99_over_feast_http": (_at_most(1.0), "lookup", lambda found: found["p99_over_feast"]),
    "recommend_p50_ms": (_at_most(6.0), "recommend", lambda found: _milliseconds(found, "p50")),
    "recommend_p99_ms": (_at_most(15.0), "recommend", lambda found: _milliseconds(found, "p99")),
    "open_loop_250_p99_ms": (_at_most(60.0), "open_loop", _milliseconds),
    "open_loop_errors": (_at_most(0.0), "open_loop", lambda found: found["num_errors"]),
    "highest_rate": (Goal(GOAL_RATE), "highest_rate", lambda found: found["highest_rate"]),
    "switch_failed_requests": (_at_most(0.0), "switch", lambda found: found["num_errors"]),
    "switch_mixed_answers": (_at_most(0.0), "switch", lambda found: found["num_mixed"]),
    "fuzz_5xx": (_at_most(0.0), "fuzz", lambda found: found["num_5xx"]),
    "fuzz_violations": (_at_most(0.0), "fuzz", lambda found: found["num_violations"]),
    "soak_5xx": (_at_most(0.0), "soak", lambda found: found["num_5xx"]),
    "soak_errors": (_at_most(0.0), "soak", lambda found: found["num_errors"] + found["num_failed_searches"]),
    "soak_corrupt_refused": (Goal(1.0), "soak", lambda found: found["corrupt_release_refused"]),
    "soak_untrue_answers": (_at_most(0.0), "soak", lambda found: found["num_untrue"]),
    "soak_memory_growth": (_at_most(0.03), "soak", lambda found: found["memory_growth"]),
}


def figures(measurements: Measurements) -> dict[str, Figure]:
    """The figures with a goal; one whose measurement is missing, or was made under other conditions, has no value."""
    result = {}
    for name, (goal, kind, value_of) in FIGURES.items():
        measured = measurements.of(kind)
        value = value_of(measured[-1]) if measured and _is_as_the_goal_asks(kind, measured[-1]) else None
        result[name] = Figure(None if value is None else float(value), goal)
    return result


def _is_as_the_goal_asks(kind: str, found: Found) -> bool:
    """A measurement that does not say its conditions was made before they were kept, and is none of the goal's."""
    return all(found.get(name, 0) >= least for name, least in LEAST.get(kind, {}).items()) and all(
        found.get(name) == value for name, value in EXACTLY.get(kind, {}).items()
    )


def write(folder: Path, command: str) -> None:
    """Write report, plot and summary. Raises `FileNotFoundError` when nothing was measured in the folder."""
    measurements = Measurements(folder)
    if not measurements.all():
        raise FileNotFoundError(f"no measurement in {measurements.file}: run python -m benchmarks.serving first")
    lines = head(measurements, command)
    for kind, section in SECTIONS.items():
        if measured := measurements.of(kind):
            lines += section(measured[-1])
    if rates := measurements.of("highest_rate"):
        draw(folder / PLOT_FILE, rates[-1])
    (folder / REPORT_FILE).write_text("\n".join(lines).rstrip() + "\n")
    machine = measurements.all()[0].conditions.machine
    write_summary(folder, command, figures(measurements), measured_on=machine, measured_at=measurements.commits())


def head(measurements: Measurements, command: str) -> list[str]:
    """On what it was measured, and the figures with their goals."""
    conditions = measurements.all()[0].conditions
    return [
        "# Serving",
        "",
        f"- Machine: {describe_machine(conditions.machine)}; service, Redis and the load share its cores.",
        f"- Command: `{command}`",
        f"- Source: commit {measurements.commits()}.",
        "- Load: wrk 4 with `benchmarks/serving/load.lua`. In an open loop every request has a moment at which it is "
        "due, and its time counts from there; one that is never answered is an error.",
        "",
        *goals(figures(measurements)),
    ]


def added_section(found: Found) -> list[str]:
    times = ("backbone_p50", "added_p50", "added_p99")
    rows = [
        [f"{each['width']}", *(_number(each[name]) for name in times), f"{each['share']:.2f}"]
        for each in (found, found["as_served"])
    ]
    return [
        "## What GRASP adds to its backbone",
        "",
        "In one process, without lookup and scores, on one thread, backbone and GRASP equally wide; milliseconds. The "
        f"goals are of width {found['width']}, the ranker that is served has {found['as_served']['width']}. Medians of "
        f"{found['rounds']} rounds of {found['requests']} requests in turns.",
        "",
        *table(["width", "backbone, p50", "GRASP adds, p50", "p99", "share of the backbone"], rows),
    ]


def million_section(found: Found) -> list[str]:
    rows = [[side, _number(found[f"{side}_p50"]), _number(found[f"{side}_p99"])] for side in ("index", "exact")]
    return [
        f"## A catalogue of {found['num_items']:,} items",
        "",
        f"The best hundred among copies of vectors of {found['width']} floats with noise ({found['origin']}), in "
        f"milliseconds. The index finds "
        f"{found['recall']:.4f} of what the exact search finds, takes {found['index_mib']:,.0f} MiB and "
        f"{found['build_seconds']:.0f} s to build.",
        "",
        *table(["search", "p50", "p99"], rows),
    ]


def materialise_section(found: Found) -> list[str]:
    rows = [
        [name, f"{rate:,.0f}", f"{min(found['seconds'][name]):.1f} to {max(found['seconds'][name]):.1f}"]
        for name, rate in found["rows_per_second"].items()
    ]
    num_rounds = len(found["seconds"]["ours"])
    return [
        "## A day put online, our way and Feast's own",
        "",
        f"{found['num_rows']:,} rows at real widths into one Redis, {num_rounds} times in each way, in turns. Ours "
        "also asks every row that is online for its time before and reads every row back after; it is "
        f"{found['times_the_fastest_of_feast']:.2f} times as fast as the faster of Feast's.",
        "",
        *table(["way", "rows a second", "seconds"], rows),
    ]


def lookup_section(found: Found) -> list[str]:
    rows = [
        [f"{where}, {who}", _number(times["p50"]), _number(times["p99"])]
        for where, sides in (("HTTP", found["http_ms"]), ("in one process", found["in_process_ms"]))
        for who, times in sides.items()
    ]
    return [
        "## A user's features, ours and Feast's own server",
        "",
        f"{found['num_requests']:,} lookups of {found['num_users']:,} users in one Redis, in turns; milliseconds. "
        f"Ours, `GET /v1/users/{{id}}/features` of the service, is {found['times_faster_at_p50']:.1f} times as fast "
        f"over HTTP at the median; its p99 is {found['p99_over_feast']:.2f} of Feast's. Both give the same columns.",
        "",
        *table(["lookup", "p50", "p99"], rows),
    ]


def recommend_section(found: Found) -> list[str]:
    times = found["milliseconds"]
    rows = [
        ["the whole answer, over HTTP", *(_number(times[name]) for name in ("p50", "p95", "p99"))],
        *(
            [f"stage {stage}", *(_number(of_stage[name]) for name in ("p50", "p95", "p99"))]
            for stage, of_stage in found["stage_milliseconds"].items()
        ),
    ]
    return [
        "## One client that waits for each answer",
        "",
        f"`POST /v1/recommendations`, ten items of {found['num_items']:,}, for {found['seconds']:g} s on one "
        f"connection: {found['num_answered']:,} answers, {found['num_errors']:,} errors; milliseconds. Stages are from "
        "the service's own histograms, linear within a bucket, so their tails are coarse.",
        "",
        *table(["", "p50", "p95", "p99"], rows),
    ]


def open_loop_section(found: Found) -> list[str]:
    late = found["late_milliseconds"]
    return [
        f"## {found['rate']:g} requests a second, whatever the answers do",
        "",
        f"{found['num_due']:,} requests in {found['seconds']:g} s, {found['num_errors']:,} errors. Milliseconds from "
        f"when they were due: p50 {_at(found, 'p50')}, p95 {_at(found, 'p95')}, p99 {_at(found, 'p99')}, most "
        f"{_at(found, 'max')}. Sent late, because the connection was still waiting: p99 "
        f"{_number(late['p99']) if late else '–'} ms, which counts above.",
        "",
    ]


def rates_section(found: Found) -> list[str]:
    rows = [
        [
            f"{each['rate']:.0f}",
            f"{each['answers_per_second']:.0f}",
            _at(each, "p50"),
            _at(each, "p99"),
            f"{each['num_errors']:,}",
            "yes" if each["holds"] else "no",
        ]
        for each in sorted(found["tried"], key=lambda each: float(each["rate"]))
    ]
    return [
        "## The highest rate that holds",
        "",
        f"A rate holds when all requests of {found['tried'][0]['seconds']:g} s are answered, 99 of 100 within "
        f"{found['limit_ms']:g} ms: {found['highest_rate']:.0f} requests a second.",
        "",
        *table(["rate", "answers a second", "p50 ms", "p99 ms", "errors", "holds"], rows),
        f"![milliseconds against requests a second]({PLOT_FILE})",
        "",
    ]


def switch_section(found: Found) -> list[str]:
    shares = ", ".join(f"{num:,}" for num in found["answers_by_release"].values())
    return [
        "## Releases switched under load",
        "",
        f"{found['num_switches']} publications and rollbacks of {found['num_releases']} releases in "
        f"{found['seconds']:g} s of {found['rate']:g} requests a second: {found['num_errors']:,} of "
        f"{found['num_due']:,} failed. The titles of each release carry a mark of it: {found['num_mixed']:,} answers "
        "named a release that was not in force or held a title of another one. Answers by release: "
        f"{shares}. A switch had reached every worker after at most {found['slowest_take_up_seconds']:.1f} s. "
        f"Milliseconds meanwhile: p50 {_at(found, 'p50')}, p99 {_at(found, 'p99')}; publications and workers that load "
        "share the cores.",
        "",
    ]


def fuzz_section(found: Found) -> list[str]:
    return [
        "## Made-up requests",
        "",
        f"schemathesis {found['version']}, all phases: {found['num_cases']:,} requests of {found['num_operations']} "
        f"operations; {found['num_5xx']:,} kinds of 5xx, {found['num_violations']:,} other kinds of answers that the "
        "OpenAPI document does not have.",
        "",
        *(f"- {failure}" for failure in found["failures"]),
        "",
    ]


def soak_section(found: Found) -> list[str]:
    names = sorted({label for count in found["labels"].values() for label in count})
    rows = [
        [phase, *(f"{count.get(name, 0):,}" for name in names), found["readiness"][phase]]
        for phase, count in found["labels"].items()
    ]
    memory, growth = found["worker_megabytes"], found["memory_growth"]
    grew = "unknown, as a worker was not there all the time" if growth is None else f"{100 * growth:.1f} %"
    return [
        "## Soak",
        "",
        f"{found['seconds'] / 60:g} minutes at {found['rate']:g} requests a second: {found['num_due']:,} requests and "
        f"{found['num_searches']:,} searches, {found['num_searches_by_milvus']:,} of them answered by Milvus; without "
        f"an answer of status 200: {found['num_errors']:,} and {found['num_failed_searches']:,}; "
        f"{found['num_5xx']:,} of status 5xx. p99 {_at(found, 'p99')} ms. Answers by fallback, and what `/readyz` said "
        "at the end of each phase:",
        "",
        *table(["phase", *names, "ready"], rows),
        f"Answers that did not say truly what stood in: {found['num_untrue']:,}. The corrupt release was "
        f"{'refused, and named by `/readyz`' if found['corrupt_release_refused'] else 'not named by `/readyz`'}. One "
        f"command brought all features back in {found['restore_seconds']:.0f} s. All workers held "
        f"{memory[0][1]:,.0f} MB at the start and {memory[-1][1]:,.0f} MB at the end; growth of the worst from the "
        f"baseline: {grew}.",
        "",
    ]


SECTIONS: dict[str, Callable[[Found], list[str]]] = {
    "added": added_section,
    "million": million_section,
    "materialise": materialise_section,
    "lookup": lookup_section,
    "recommend": recommend_section,
    "open_loop": open_loop_section,
    "highest_rate": rates_section,
    "switch": switch_section,
    "fuzz": fuzz_section,
    "soak": soak_section,
}


def draw(file: Path, found: Found) -> None:
    """p50 and p99 against the rate, with the limit across."""
    tried = sorted((each for each in found["tried"] if each["milliseconds"]), key=lambda each: float(each["rate"]))
    rates = [each["rate"] for each in tried]
    with plot(file, "requests a second", "milliseconds from when they were due") as axes:
        axes.axhline(found["limit_ms"], color=COLOURS["control"], linestyle=":", linewidth=1)
        for number, (name, family) in enumerate((("p50", "llm_esr"), ("p99", "grasp"))):
            values = [each["milliseconds"][name] for each in tried]
            axes.plot(rates, values, label=name, color=COLOURS[family], marker=MARKERS[number], markersize=4)
        axes.set_yscale("log")
        axes.legend(fontsize=8, frameon=False)


def _at(found: Found, name: str) -> str:
    value = _milliseconds(found, name)
    return "–" if value is None else _number(value)


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.0f}"


def main() -> None:
    write_again(
        "benchmarks.serving.report",
        lambda folder: write(folder, of_report("python -m benchmarks.serving --data FOLDER", folder)),
        MEASUREMENTS_FILE,
        REPORT_FILE,
    )


if __name__ == "__main__":
    main()
