"""The report of serving, from the measurements of a folder; of several measurements of a kind the last one counts.

    python -m benchmarks.serving.report DIR

The kinds `added`, `million`, `materialise`, `lookup` and `fuzz` are settled and no longer measured
(docs/decisions/benchmarks.md); a folder that has them still shows them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.core.plots import COLOURS, MARKERS, plot
from benchmarks.core.report import Bullets, Part, Plot, Report, Section, Table, Writer, measured, origin_of
from benchmarks.core.summary import Figure, FigureOf, Found, Goal, figures_of

MODULE = "benchmarks.serving"
KINDS = ("fresh", "recommend", "open_loop", "highest_rate", "switch", "soak")
GOAL_RATE = 250.0
PERCENTILES = ("p50", "p95", "p99")

# A figure counts only when its measurement was at least as large as its goal asks for ...
LEAST: dict[str, dict[str, float]] = {
    "million": {"num_items": 1_200_000},
    "fresh": {"num_items": 12_000, "num_shop_moments": 10_000, "num_moments": 200_000},
    "recommend": {"num_items": 12_000},
    "open_loop": {"seconds": 60},
    "soak": {"seconds": 1800, "num_searches_by_milvus": 1},  # a Milvus that never answered cannot be lost
}
# ... and was made with exactly these settings: another rate is another load, more workers compete for the cores.
EXACTLY: dict[str, dict[str, float]] = {
    "added": {"width": 64},
    "fresh": {"width": 64, "length": 100},
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
    "added_online_p50_ms": (_at_most(1.0), "fresh", lambda found: found["added_p50"]),
    "online_moment_search_ms": (_at_most(3.0), "fresh", lambda found: found["search_p50"]),
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
        sections=[
            Section(title.format(**latest[kind]), parts(latest[kind]))
            for kind, (title, parts) in SECTIONS.items()
            if kind in latest
        ],
    )


def added(found: Found) -> list[Part]:
    rows = [
        [f"{each['width']}", *_shown(each, ("backbone_p50", "added_p50", "added_p99")), f"{each['share']:.2f}"]
        for each in (found, found["as_served"])
    ]
    text = (
        "In one process, without lookup and scores, on one thread, backbone and GRASP equally wide; milliseconds. The "
        "goals are of width {width}, the ranker that is served has {as_served[width]}. Medians of {rounds} rounds of "
        "{requests} requests in turns."
    )
    header = ["width", "backbone, p50", "GRASP adds, p50", "p99", "share of the backbone"]
    return [text.format(**found), Table(header, rows)]


def fresh(found: Found) -> list[Part]:
    text = (
        "In one process on one thread, all made up; milliseconds. A history of {length} items, of {num_items:,}, width "
        "{width}, {num_shop_moments:,} moments. GRASP adds what its attention, its kernel and fresh features take "
        "beyond it, the search of these moments included. The last line is a search alone, of {num_moments:,} moments. "
        "Medians of {rounds} rounds of {requests} requests."
    )
    names = {
        "backbone": "backbone",
        "added": "GRASP adds",
        "added_by_fresh": "of which fresh features",
        "added_by_search": "of which the search of moments",
        "search": "search of many moments",
    }
    rows = [[shown, *_shown(found, (f"{name}_p50", f"{name}_p99"))] for name, shown in names.items()]
    return [text.format(**found), Table(["", "p50", "p99"], rows)]


def million(found: Found) -> list[Part]:
    text = (
        "The best hundred among copies of vectors of {width} floats with noise ({origin}), in milliseconds. The index "
        "finds {recall:.4f} of what the exact search finds, takes {index_mib:,.0f} MiB and {build_seconds:.0f} s to "
        "build."
    )
    rows = [[side, *_shown(found, (f"{side}_p50", f"{side}_p99"))] for side in ("index", "exact")]
    return [text.format(**found), Table(["search", "p50", "p99"], rows)]


def materialise(found: Found) -> list[Part]:
    text = (
        "{num_rows:,} rows at real widths into one Redis, {num_rounds} times in each way, in turns. Ours also asks "
        "every row that is online for its time before and reads every row back after; it is "
        "{times_the_fastest_of_feast:.2f} times as fast as the faster of Feast's."
    )
    rows = [
        [name, f"{rate:,.0f}", f"{min(found['seconds'][name]):.1f} to {max(found['seconds'][name]):.1f}"]
        for name, rate in found["rows_per_second"].items()
    ]
    num_rounds = len(found["seconds"]["ours"])
    return [text.format(**found, num_rounds=num_rounds), Table(["way", "rows a second", "seconds"], rows)]


def lookup(found: Found) -> list[Part]:
    text = (
        "{num_requests:,} lookups of {num_users:,} users in one Redis, in turns; milliseconds. Ours, "
        "`GET /v1/users/{{id}}/features` of the service, is {times_faster_at_p50:.1f} times as fast over HTTP at the "
        "median; its p99 is {p99_over_feast:.2f} of Feast's. Both give the same columns."
    )
    rows = [
        [f"{where}, {who}", *_shown(times, ("p50", "p99"))]
        for where, sides in (("HTTP", found["http_ms"]), ("in one process", found["in_process_ms"]))
        for who, times in sides.items()
    ]
    return [text.format(**found), Table(["lookup", "p50", "p99"], rows)]


def recommend(found: Found) -> list[Part]:
    text = (
        "`POST /v1/recommendations`, ten items of {num_items:,}, for {seconds:g} s on one connection: {num_answered:,} "
        "answers, {num_errors:,} errors; milliseconds. Stages are from the service's own histograms, linear within a "
        "bucket, so their tails are coarse."
    )
    stages = {f"stage {stage}": times for stage, times in found["stage_milliseconds"].items()}
    timed = {"the whole answer, over HTTP": found["milliseconds"]} | stages
    rows = [[name, *_shown(times, PERCENTILES)] for name, times in timed.items()]
    return [text.format(**found), Table(["", *PERCENTILES], rows)]


def open_loop(found: Found) -> list[Part]:
    text = (
        "{num_due:,} requests in {seconds:g} s, {num_errors:,} errors. Milliseconds from when they were due: p50 "
        "{p50}, p95 {p95}, p99 {p99}, most {max}. Sent late, because the connection was still waiting: p99 {late} ms, "
        "which counts above."
    )
    [late] = _shown(found["late_milliseconds"], ("p99",))
    return [text.format(**found, **_times(found), late=late)]


def highest_rate(found: Found) -> list[Part]:
    text = (
        "A rate holds when all requests of {seconds:g} s are answered, 99 of 100 within {limit_ms:g} ms: "
        "{highest_rate:.0f} requests a second."
    )
    row = "{rate:.0f}|{answers_per_second:.0f}|{p50}|{p99}|{num_errors:,}|{yes_or_no}"
    rows = [
        row.format(**each, **_times(each), yes_or_no="yes" if each["holds"] else "no").split("|")
        for each in _by_rate(found)
    ]
    return [
        text.format(**found, seconds=found["tried"][0]["seconds"]),
        Table(["rate", "answers a second", "p50 ms", "p99 ms", "errors", "holds"], rows),
        Plot("rates.svg", "milliseconds against requests a second", partial(_draw_rates, found)),
    ]


def _by_rate(found: Found) -> list[Found]:
    return sorted(found["tried"], key=lambda each: float(each["rate"]))


def _draw_rates(found: Found, file: Path) -> None:
    """p50 and p99 against the rate, and the limit as a line."""
    tried = [each for each in _by_rate(found) if each["milliseconds"]]
    rates = [each["rate"] for each in tried]
    with plot(file, "requests a second", "milliseconds from when they were due") as axes:
        axes.axhline(found["limit_ms"], color=COLOURS["control"], linestyle=":", linewidth=1)
        for number, (name, family) in enumerate((("p50", "llm_esr"), ("p99", "grasp"))):
            values = [each["milliseconds"][name] for each in tried]
            axes.plot(rates, values, label=name, color=COLOURS[family], marker=MARKERS[number], markersize=4)
        axes.set_yscale("log")
        axes.legend(fontsize=8, frameon=False)


def switch(found: Found) -> list[Part]:
    text = (
        "{num_switches} publications and rollbacks of {num_releases} releases in {seconds:g} s of {rate:g} requests a "
        "second: {num_errors:,} of {num_due:,} failed. The titles of each release carry a mark of it: {num_mixed:,} "
        "answers named a release that was not in force or held a title of another one. Answers by release: {shares}. A "
        "switch had reached every worker after at most {slowest_take_up_seconds:.1f} s. Milliseconds meanwhile: p50 "
        "{p50}, p99 {p99}; publications and workers that load share the cores."
    )
    shares = ", ".join(f"{num:,}" for num in found["answers_by_release"].values())
    return [text.format(**found, **_times(found), shares=shares)]


def fuzz(found: Found) -> list[Part]:
    text = (
        "schemathesis {version}, all phases: {num_cases:,} requests of {num_operations} operations; {num_5xx:,} kinds "
        "of 5xx, {num_violations:,} other kinds of answers that the OpenAPI document does not have."
    )
    return [text.format(**found), *([Bullets(found["failures"])] if found["failures"] else [])]


def soak(found: Found) -> list[Part]:
    counts = (
        "{minutes:g} minutes at {rate:g} requests a second: {num_due:,} requests and {num_searches:,} searches, "
        "{num_searches_by_milvus:,} of them answered by Milvus; without an answer of status 200: {num_errors:,} and "
        "{num_failed_searches:,}; {num_5xx:,} of status 5xx. p99 {p99} ms. Answers by fallback, and what the "
        "service said of itself at the end of each phase:"
    )
    states = (
        "Answers that did not say truly what stood in: {num_untrue:,}. The corrupt release was {refused}. One command "
        "brought all features back in {restore_seconds:.0f} s. All workers held {first:,.0f} MB at the start and "
        "{last:,.0f} MB at the end; growth of the worst from the baseline: {grew}."
    )
    names = sorted({label for count in found["labels"].values() for label in count})
    rows = [
        [phase, *(f"{count.get(name, 0):,}" for name in names), found["readiness"][phase]]
        for phase, count in found["labels"].items()
    ]
    refused = "refused, and named by `/readyz`" if found["corrupt_release_refused"] else "not named by `/readyz`"
    (_, first), (_, last), growth = found["worker_megabytes"][0], found["worker_megabytes"][-1], found["memory_growth"]
    grew = "unknown, as a worker was not there all the time" if growth is None else f"{100 * growth:.1f} %"
    return [
        counts.format(**found, **_times(found), minutes=found["seconds"] / 60),
        Table(["phase", *names, "ready"], rows),
        states.format(**found, refused=refused, first=first, last=last, grew=grew),
    ]


SECTIONS: dict[str, tuple[str, Callable[[Found], list[Part]]]] = {
    "added": ("What GRASP adds to its backbone", added),
    "fresh": ("What takers, votes and moments cost", fresh),
    "million": ("A catalogue of {num_items:,} items", million),
    "materialise": ("A day put online, our way and Feast's own", materialise),
    "lookup": ("A user's features, ours and Feast's own server", lookup),
    "recommend": ("One client that waits for each answer", recommend),
    "open_loop": ("{rate:g} requests a second, whatever the answers do", open_loop),
    "highest_rate": ("The highest rate that holds", highest_rate),
    "switch": ("Releases switched under load", switch),
    "fuzz": ("Made-up requests", fuzz),
    "soak": ("Soak", soak),
}


def _times(found: Found) -> dict[str, str]:
    """The percentiles of a load, as the report shows them."""
    names = (*PERCENTILES, "max")
    return dict(zip(names, _shown(found["milliseconds"], names), strict=True))


def _shown(milliseconds: Found | None, names: Sequence[str]) -> list[str]:
    """Milliseconds as the report shows them; a dash when nothing was answered."""
    values = [milliseconds[name] if milliseconds else None for name in names]
    return ["–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values]


REPORT = Writer(MODULE, build)

if __name__ == "__main__":
    REPORT.main()
