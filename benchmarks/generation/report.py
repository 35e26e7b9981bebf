"""The report of the generation stage, from the measurements of a folder.

    python -m benchmarks.generation.report DIR

The kinds `engine`, `identical`, `spark`, `http`, `ledger`, `validator` and `poisoned` are settled and no longer
measured (docs/decisions/benchmarks.md); a folder that has them still shows them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.core.report import Part, Report, Section, Table, Writer, measured, origin_of
from benchmarks.core.summary import FigureOf, Found, Goal, figures_of

MODULE = "benchmarks.generation"
KINDS = ("faults", "days")


def _cheapest(costs: Mapping[str, Found]) -> float:
    """CPU seconds of the cheapest setting of an engine."""
    return float(min(each["cpu_seconds"] for each in costs.values()))


def _seconds(found: Found, day: str) -> float:
    return float(sum(found["days"][day].values()))


def _at_most(bound: float) -> Goal:
    return Goal(bound, "at most")


def _beyond_unchanged_day(found: Found) -> float:
    """The cost of a change of one in a hundred beyond that of a day without a change, as a share of the full day."""
    more = _seconds(found, "one_percent") - _seconds(found, "nothing")
    return max(0.0, more) / _seconds(found, "full")


def _written_over_changed(found: Found) -> float:
    return float(max(found[name]["one_percent"] for name in ("num_encoded", "num_upserted")) / found["num_changed"])


FIGURES: dict[str, FigureOf] = {
    "descriptions_per_cpu_second_over_xllamacpp": (
        Goal(1.0),
        "engine",
        lambda it: _cheapest(it["llama_cpp"]) / _cheapest(it["ours"]),
    ),
    "identical_text_share": (Goal(0.99), "identical", lambda it: it["num_identical"] / it["num_prompts"]),
    "spark_overhead": (_at_most(0.1), "spark", lambda it: it["cpu_seconds"] / it["bare_cpu_seconds"] - 1),
    "http_share_of_ideal": (Goal(0.9), "http", lambda it: median(each["share_of_ideal"] for each in it["rounds"])),
    "unchanged_day_speedup": (Goal(20.0), "days", lambda it: _seconds(it, "full") / _seconds(it, "again")),
    "unchanged_day_calls": (_at_most(0.0), "days", lambda it: float(it["num_calls_again"])),
    "one_percent_cost_share": (_at_most(0.05), "days", _beyond_unchanged_day),
    "one_percent_written_over_changed": (_at_most(1.0), "days", _written_over_changed),
    "faults_recovered_share": (Goal(0.99), "faults", lambda it: it["num_recovered"] / it["num_hit_by_transient"]),
    "faults_paid_twice": (_at_most(0.0), "faults", lambda it: float(it["num_paid_twice"])),
    "validator_precision": (Goal(0.9), "validator", lambda it: it["precision"]),
    "validator_recall": (Goal(0.8), "validator", lambda it: it["recall"]),
    "poisoned_published": (_at_most(0.0), "poisoned", lambda it: float(it["num_by_model"] + it["num_by_facts"])),
    "ledger_antijoin_seconds": (_at_most(180.0), "ledger", lambda it: it["seconds"]),
}


def build(folder: Path, command: str) -> Report:
    measurements = measured(folder, MODULE)
    latest = {kind: rounds[-1] | {"rounds": rounds} for kind, rounds in measurements.by_kind().items()}
    shown = {name: each for name, each in FIGURES.items() if each[1] in {*KINDS, *latest}}
    model = "Model: SmolLM2-135M-Instruct, greedy; ours in float32"
    if "engine" in latest:
        model += ", llama.cpp's the Q4_1 file that ours was made from"
    return Report(
        "Generating descriptions",
        origin_of(measurements, command),
        facts=[f"{model}."],
        figures=figures_of(shown, latest),
        sections=[Section(title, parts(latest[kind])) for kind, (title, parts) in SECTIONS.items() if kind in latest],
    )


def engine(found: Found) -> list[Part]:
    sides = {
        "ours, batches of": found["ours"],
        "llama.cpp with prefix cache, parallel slots": found["llama_cpp"],
    }
    rows = [
        [side, setting, f"{cost['cpu_seconds'] / found['num_prompts']:.2f}", f"{cost['num_output_tokens']:,}"]
        for side, settings in sides.items()
        for setting, cost in settings.items()
    ]
    text = (
        "{num_prompts:,} prompts of the refresh, items before users, the same for all, one thread; loading does not "
        "count. llama.cpp is the wheel on PyPI, which by its own README is built without the instructions that newer "
        "processors have (AVX-512, AMX); one compiled on the machine may be quicker."
    )
    return [text.format(**found), Table(["side", "setting", "CPU seconds", "tokens written"], rows)]


def spark(found: Found) -> list[Part]:
    text = (
        "{num_prompts:,} descriptions: {cpu_seconds:.0f} CPU seconds of driver, JVM and one worker, judging and the "
        "ledger included, {bare_cpu_seconds:.0f} of the engine alone in one process. Starting the session and loading "
        "the model do not count."
    )
    return [text.format(**found)]


def http(found: Found) -> list[Part]:
    row = (
        "{num_requests:,}|{requests_per_second:.0f}|{share_of_ideal:.3f}|{client_cpu_ms_per_request:.2f}|"
        "{server_cpu_ms_per_request:.2f}"
    )
    return [
        "Server in another process on the same two cores; the ideal is 128 requests a second.",
        Table(
            ["requests", "a second", "share of ideal", "client CPU ms", "server CPU ms"],
            [row.format(**each).split("|") for each in found["rounds"]],
        ),
    ]


def faults(found: Found) -> list[Part]:
    counts = (
        "{num_items:,} items, {num_requests:,} requests, the day run twice; {num_described:,} are described. Of "
        "{num_hit_by_transient:,} that met one to three passing faults {num_recovered:,} have the model's text; of "
        "{num_hit_by_lasting:,} with a refusal, an ungrounded text, a wrong model or a rejected request "
        "{num_lasting_published:,} have. Answers paid twice: {num_paid_twice:,}. Tokens: {num_tokens:,} of "
        "{max_tokens:,} allowed."
    )
    untrusted = (
        "Of {num_items:,} items for a server whose certificate nobody trusts {num_with_reason:,} were asked for, in "
        "{num_calls:,} calls, and the ledger has the reason: it is not tried again."
    )
    rows = [[fault, f"{met['num_items']:,}", f"{met['num_with_text']:,}"] for fault, met in found["by_fault"].items()]
    return [
        counts.format(**found),
        untrusted.format(**found["by_fault"]["certificate error"]),
        Table(["fault", "items that met it", "with the model's text"], rows),
    ]


def ledger(found: Found) -> list[Part]:
    text = (
        "{num_inputs:,} inputs against {num_keys:,} keys: {seconds:.0f} seconds; {num_unpaid:,} are new. The Python "
        "driver grew by {driver_grew_megabytes:.0f} MB; the JVM, which works in the same process locally, held "
        "{jvm_megabytes:,.0f} MB."
    )
    return [text.format(**found)]


DAYS = {
    "full": "everything new",
    "again": "the same day again",
    "one_percent": "one in a hundred changed",
    "nothing": "a day without a change",
}


def days(found: Found) -> list[Part]:
    stages = list(found["days"]["full"])
    rows = [
        [DAYS[day], *(f"{each:.1f}" for each in (*(seconds[stage] for stage in stages), sum(seconds.values())))]
        + [f"{found[name][day]:,}" for name in ("num_encoded", "num_upserted")]
        for day, seconds in found["days"].items()
    ]
    text = (
        "{num_entities:,} users and items described from their facts, encoded and written to Milvus-Lite; seconds in "
        "one Spark session, its start excluded. {num_changed:,} of them changed."
    )
    share = _seconds(found, "one_percent") / _seconds(found, "full")
    return [
        text.format(**found),
        Table(["day", *stages, "together", "texts encoded", "vectors written"], rows),
        "The share in the goals leaves out what a day without a change costs: the stages take that long however "
        "little changed. It is no constant: they read and hash the facts of all again and carry unchanged rows into "
        f"the new day. With it, the day on which one in a hundred changed took {share:.0%} of the full one. Where a "
        "language model writes the texts, the full day takes hours longer and the others do not.",
    ]


def validator(found: Found) -> list[Part]:
    text = (
        "On {num_outputs:,} labelled texts that it was not tuned on, {num_usable:,} of them usable: {num_accepted:,} "
        "accepted, precision {precision:.3f}, recall {recall:.3f}. One real model, SmolLM2-135M in five settings, "
        "wrote most of them; the others were written for the set in the way of a large model. Label some texts of "
        "another model before trusting the figures for it."
    )
    return [text.format(**found)]


def poisoned(found: Found) -> list[Part]:
    text = (
        "{num_inputs:,} hostile inputs and {num_answers:,} answers of a model that obeys them: {num_by_model:,} "
        "published by the model's text, {num_by_facts:,} by the facts."
    )
    return [text.format(**found)]


SECTIONS: dict[str, tuple[str, Callable[[Found], list[Part]]]] = {
    "engine": ("CPU seconds of a description", engine),
    "spark": ("Spark around the engine", spark),
    "http": ("A server that answers in half a second, 64 requests at once", http),
    "faults": ("A server that fails in every way", faults),
    "ledger": ("A large ledger", ledger),
    "days": ("Days on which little changes", days),
    "validator": ("The validator", validator),
    "poisoned": ("Hostile facts", poisoned),
}

REPORT = Writer(MODULE, build)

if __name__ == "__main__":
    REPORT.main()
