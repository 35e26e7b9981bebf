"""The report of serving, from the measurements of a folder; of several measurements of a kind the last one counts.

    python -m benchmarks.serving.report DIR

The kinds `materialise`, `lookup` and `fuzz` are settled and no longer measured (docs/decisions/benchmarks.md); a folder
that has them still shows them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.core.plots import COLOURS, MARKERS, plot
from benchmarks.core.report import Bullets, Part, Plot, Report, Section, Table, Writer, measured, origin_of
from benchmarks.core.summary import Figure, FigureOf, Found, Goal, figures_of

MODULE = "benchmarks.serving"
KINDS = ("added", "million", "recommend", "open_loop", "highest_rate", "switch", "soak")
GOAL_RATE = 250.0
PERCENTILES = ("p50", "p95", "p99")

# A figure counts only when its measurement was at least as large as its goal asks for ...
LEAST: dict[str, dict[str, float]] = {
    "million": {"num_items": 1_200_000},
    "recommend": {"num_items": 12_000},
    "open_loop": {"seconds": 60},
    "soak": {"seconds": 1800, "num_searches_by_milvus": 1},  # a Milvus that never answered cannot be lost
}
# ... and was made with exactly these settings: another rate is another load, more workers compete for the cores.
EXACTLY: dict[str, dict[str, float]] = {
    "added": {"width": 64},
    "open_loop": {"rate": GOAL_RATE, "num_workers": 2},
    "highest_rate": {"num_workers": 2},
    "switch": {"num_workers": 2},
    "soak": {"num_workers": 2, "has_milvus": True},
}


def _at_most(bound: float) -> Goal:
    return Goal(bound, "at most")


def _milliseconds(found: Found, name: str = "p99") -> float | None:
    """None when nothing was answered."""
    return found["milliseconds"] and found["milliseconds"][name]


FIGURES: dict[str, FigureOf] = {
    "grasp_added_p50_ms": (_at_most(1.0), "added", lambda found: found["added_p50"]),
    "grasp_added_p99_ms": (_at_most(2.0), "added", lambda found: found["added_p99"]),
    "grasp_added_share": (_at_most(1.0), "added", lambda found: found["share"]),
    "million_p99_ms": (_at_most(40.0), "million", lambda found: found["index_p99"]),
    "million_recall_at_100": (Goal(0.98), "million", lambda found: found["recall"]),
    "lookup_speedup_over_feast_http": (Goal(2.0), "lookup", lambda found: found["times_faster_at_p50"]),
    "lookup_p99_over_feast_http": (_at_most(1.0), "lookup", lambda found: found["p99_over_feast"]),
    "recommend_p50_ms": (_at_most(6.0), "recommend", lambda found: _milliseconds(found, "p50")),
    "recommend_p99_ms": (_at_most(15.0), "recommend", _milliseconds),
    "open_loop_250_p99_ms": (_at_most(60.0), "open_loop", _milliseconds),
    "open_loop_errors": (_at_most(0.0), "open_loop", lambda found: found["num_errors"]),
    "highest_rate": (Goal(GOAL_RATE), "highest_rate", lambda found: found["highest_rate"]),
    "switch_failed_requests": (_at_most(0.0), "switch", lambda found: found["num_errors"]),
    "switch_mixed_answers": (_at_most(0.0), "switch", lambda found: found["num_mixed"]),
    "fuzz_5xx": (_at_most(0.0), "fuzz", lambda found: found["num_5xx"]),
    "fuzz_violations": (_at_most(0.0), "fuzz", lambda found: found["num_violations"]),
    "soak_5xx": (_at_most(0.0), "soak", lambda found: found["num_5xx"]),
    "soak_errors": (_at_most(0.0), "soak", lambda found: found["num_errors"] + found["num_failed_searches"]),
    "soak_corrupt_refused": (Goal(1.0), "soak", lambda found: float(found["corrupt_release_refused"])),
    "soak_untrue_answers": (_at_most(0.0), "soak", lambda found: found["num_untrue"]),
    "soak_memory_growth": (_at_most(0.03), "soak", lambda found: found["memory_growth"]),
}


def figures(latest: dict[str, Found]) -> dict[str, Figure]:
    """The figures; one whose measurement is missing or was made under other conditions has no value."""
    shown = {name: each for name, each in FIGURES.items() if each[1] in {*KINDS, *latest}}
    found = figures_of(shown, {kind: each for kind, each in latest.items() if _counts(kind, each)})
    return {name: Figure(None if each.value is None else float(each.value), each.goal) for name, each in found.items()}


def _counts(kind: str, found: Found) -> bool:
    """A measurement that does not tell its conditions was made before they were kept, and does not count."""
    return all(found.get(name, 0) >= least for name, least in LEAST.get(kind, {}).items()) and all(
        found.get(name) == value for name, value in EXACTLY.get(kind, {}).items()
    )


def build(folder: Path, command: str) -> Report:
    measurements = measured(folder, MODULE)
    latest: dict[str, Found] = {kind: found[-1] for kind, found in measurements.by_kind().items()}
    return Report(
        "Serving",
        origin_of(measurements, command, "; service, Redis and the load share its cores"),
        facts=[
            "Load: wrk 4 with `benchmarks/serving/load.lua`. In an open loop every request has a moment at which it "
            "is due, and its time counts from there; one that is never answered is an error."
        ],
        figures=figures(latest),
        sections=[section(latest[kind]) for kind, section in SECTIONS.items() if kind in latest],
    )


def added(found: Found) -> Section:
    times = ("backbone_p50", "added_p50", "added_p99")
    rows = [
        [f"{each['width']}", *(_shown(each[name]) for name in times), f"{each['share']:.2f}"]
        for each in (found, found["as_served"])
    ]
    return Section(
        "What GRASP adds to its backbone",
        [
            "In one process, without lookup and scores, on one thread, backbone and GRASP equally wide; milliseconds. "
            f"The goals are of width {found['width']}, the ranker that is served has {found['as_served']['width']}. "
            f"Medians of {found['rounds']} rounds of {found['requests']} requests in turns.",
            Table(["width", "backbone, p50", "GRASP adds, p50", "p99", "share of the backbone"], rows),
        ],
    )


def million(found: Found) -> Section:
    rows = [[side, _shown(found[f"{side}_p50"]), _shown(found[f"{side}_p99"])] for side in ("index", "exact")]
    return Section(
        f"A catalogue of {found['num_items']:,} items",
        [
            f"The best hundred among copies of vectors of {found['width']} floats with noise ({found['origin']}), in "
            f"milliseconds. The index finds {found['recall']:.4f} of what the exact search finds, takes "
            f"{found['index_mib']:,.0f} MiB and {found['build_seconds']:.0f} s to build.",
            Table(["search", "p50", "p99"], rows),
        ],
    )


def materialise(found: Found) -> Section:
    rows = [
        [name, f"{rate:,.0f}", f"{min(found['seconds'][name]):.1f} to {max(found['seconds'][name]):.1f}"]
        for name, rate in found["rows_per_second"].items()
    ]
    return Section(
        "A day put online, our way and Feast's own",
        [
            f"{found['num_rows']:,} rows at real widths into one Redis, {len(found['seconds']['ours'])} times in each "
            "way, in turns. Ours also asks every row that is online for its time before and reads every row back "
            f"after; it is {found['times_the_fastest_of_feast']:.2f} times as fast as the faster of Feast's.",
            Table(["way", "rows a second", "seconds"], rows),
        ],
    )


def lookup(found: Found) -> Section:
    rows = [
        [f"{where}, {who}", _shown(times["p50"]), _shown(times["p99"])]
        for where, sides in (("HTTP", found["http_ms"]), ("in one process", found["in_process_ms"]))
        for who, times in sides.items()
    ]
    return Section(
        "A user's features, ours and Feast's own server",
        [
            f"{found['num_requests']:,} lookups of {found['num_users']:,} users in one Redis, in turns; milliseconds. "
            f"Ours, `GET /v1/users/{{id}}/features` of the service, is {found['times_faster_at_p50']:.1f} times as "
            f"fast over HTTP at the median; its p99 is {found['p99_over_feast']:.2f} of Feast's. Both give the same "
            "columns.",
            Table(["lookup", "p50", "p99"], rows),
        ],
    )


def recommend(found: Found) -> Section:
    of_stages = {f"stage {stage}": times for stage, times in found["stage_milliseconds"].items()}
    timed = {"the whole answer, over HTTP": found["milliseconds"]} | of_stages
    rows = [[name, *(_shown(times[each]) for each in PERCENTILES)] for name, times in timed.items()]
    return Section(
        "One client that waits for each answer",
        [
            f"`POST /v1/recommendations`, ten items of {found['num_items']:,}, for {found['seconds']:g} s on one "
            f"connection: {found['num_answered']:,} answers, {found['num_errors']:,} errors; milliseconds. Stages are "
            "from the service's own histograms, linear within a bucket, so their tails are coarse.",
            Table(["", *PERCENTILES], rows),
        ],
    )


def open_loop(found: Found) -> Section:
    late = found["late_milliseconds"]
    return Section(
        f"{found['rate']:g} requests a second, whatever the answers do",
        [
            f"{found['num_due']:,} requests in {found['seconds']:g} s, {found['num_errors']:,} errors. Milliseconds "
            f"from when they were due: p50 {_at(found, 'p50')}, p95 {_at(found, 'p95')}, p99 {_at(found, 'p99')}, most "
            f"{_at(found, 'max')}. Sent late, because the connection was still waiting: p99 "
            f"{_shown(late['p99']) if late else '–'} ms, which counts above."
        ],
    )


def highest_rate(found: Found) -> Section:
    rows = [
        [
            f"{each['rate']:.0f}",
            f"{each['answers_per_second']:.0f}",
            _at(each, "p50"),
            _at(each, "p99"),
            f"{each['num_errors']:,}",
            "yes" if each["holds"] else "no",
        ]
        for each in _tried(found)
    ]
    return Section(
        "The highest rate that holds",
        [
            f"A rate holds when all requests of {found['tried'][0]['seconds']:g} s are answered, 99 of 100 within "
            f"{found['limit_ms']:g} ms: {found['highest_rate']:.0f} requests a second.",
            Table(["rate", "answers a second", "p50 ms", "p99 ms", "errors", "holds"], rows),
            Plot("rates.svg", "milliseconds against requests a second", partial(_draw_rates, found)),
        ],
    )


def _tried(found: Found) -> list[Found]:
    return sorted(found["tried"], key=lambda each: float(each["rate"]))


def _draw_rates(found: Found, file: Path) -> None:
    """p50 and p99 against the rate, and the limit as a line."""
    tried = [each for each in _tried(found) if each["milliseconds"]]
    rates = [each["rate"] for each in tried]
    with plot(file, "requests a second", "milliseconds from when they were due") as axes:
        axes.axhline(found["limit_ms"], color=COLOURS["control"], linestyle=":", linewidth=1)
        for number, (name, family) in enumerate((("p50", "llm_esr"), ("p99", "grasp"))):
            values = [each["milliseconds"][name] for each in tried]
            axes.plot(rates, values, label=name, color=COLOURS[family], marker=MARKERS[number], markersize=4)
        axes.set_yscale("log")
        axes.legend(fontsize=8, frameon=False)


def switch(found: Found) -> Section:
    shares = ", ".join(f"{num:,}" for num in found["answers_by_release"].values())
    return Section(
        "Releases switched under load",
        [
            f"{found['num_switches']} publications and rollbacks of {found['num_releases']} releases in "
            f"{found['seconds']:g} s of {found['rate']:g} requests a second: {found['num_errors']:,} of "
            f"{found['num_due']:,} failed. The titles of each release carry a mark of it: {found['num_mixed']:,} "
            "answers named a release that was not in force or held a title of another one. Answers by release: "
            f"{shares}. A switch had reached every worker after at most {found['slowest_take_up_seconds']:.1f} s. "
            f"Milliseconds meanwhile: p50 {_at(found, 'p50')}, p99 {_at(found, 'p99')}; publications and workers that "
            "load share the cores."
        ],
    )


def fuzz(found: Found) -> Section:
    parts: list[Part] = [
        f"schemathesis {found['version']}, all phases: {found['num_cases']:,} requests of {found['num_operations']} "
        f"operations; {found['num_5xx']:,} kinds of 5xx, {found['num_violations']:,} other kinds of answers that the "
        "OpenAPI document does not have."
    ]
    return Section("Made-up requests", [*parts, *([Bullets(found["failures"])] if found["failures"] else [])])


def soak(found: Found) -> Section:
    names = sorted({label for count in found["labels"].values() for label in count})
    rows = [
        [phase, *(f"{count.get(name, 0):,}" for name in names), found["readiness"][phase]]
        for phase, count in found["labels"].items()
    ]
    memory, growth = found["worker_megabytes"], found["memory_growth"]
    grew = "unknown, as a worker was not there all the time" if growth is None else f"{100 * growth:.1f} %"
    return Section(
        "Soak",
        [
            f"{found['seconds'] / 60:g} minutes at {found['rate']:g} requests a second: {found['num_due']:,} requests "
            f"and {found['num_searches']:,} searches, {found['num_searches_by_milvus']:,} of them answered by Milvus; "
            f"without an answer of status 200: {found['num_errors']:,} and {found['num_failed_searches']:,}; "
            f"{found['num_5xx']:,} of status 5xx. p99 {_at(found, 'p99')} ms. Answers by fallback, and what `/readyz` "
            "said at the end of each phase:",
            Table(["phase", *names, "ready"], rows),
            f"Answers that did not say truly what stood in: {found['num_untrue']:,}. The corrupt release was "
            f"{'refused, and named by `/readyz`' if found['corrupt_release_refused'] else 'not named by `/readyz`'}. "
            f"One command brought all features back in {found['restore_seconds']:.0f} s. All workers held "
            f"{memory[0][1]:,.0f} MB at the start and {memory[-1][1]:,.0f} MB at the end; growth of the worst from the "
            f"baseline: {grew}.",
        ],
    )


SECTIONS: dict[str, Callable[[Found], Section]] = {
    "added": added,
    "million": million,
    "materialise": materialise,
    "lookup": lookup,
    "recommend": recommend,
    "open_loop": open_loop,
    "highest_rate": highest_rate,
    "switch": switch,
    "fuzz": fuzz,
    "soak": soak,
}


def _at(found: Found, name: str) -> str:
    value = _milliseconds(found, name)
    return "–" if value is None else _shown(value)


def _shown(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.0f}"


REPORT = Writer(MODULE, build)

if __name__ == "__main__":
    REPORT.main()
