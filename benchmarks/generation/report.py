"""The report of the generation stage, from the measurements of a folder.

    python -m benchmarks.generation.report DIR

The kinds `engine`, `identical`, `spark`, `http` and `ledger` are settled and no longer measured
(docs/decisions/benchmarks.md); a folder that has them still shows them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.core.report import Part, Report, Section, Table, Writer, measured, origin_of
from benchmarks.core.summary import FigureOf, Found, Goal, figures_of

MODULE = "benchmarks.generation"
KINDS = ("validator", "poisoned", "faults", "days")
NO_MORE_THAN = "at most"


def _cheapest(costs: Mapping[str, Found]) -> float:
    """CPU seconds of the cheapest setting of an engine."""
    return float(min(each["cpu_seconds"] for each in costs.values()))


def _seconds(found: Found, day: str) -> float:
    return float(sum(found["days"][day].values()))


def _above_unchanged_day(found: Found) -> float:
    """What a change of one in a hundred costs beyond a day without a change, as a share of the full day."""
    more = _seconds(found, "one_percent") - _seconds(found, "nothing")
    return max(0.0, more) / _seconds(found, "full")


def _most_written(found: Found) -> float:
    return float(max(found["num_encoded"]["one_percent"], found["num_upserted"]["one_percent"]))


FIGURES: dict[str, FigureOf] = {
    "descriptions_per_cpu_second_over_xllamacpp": (
        Goal(1.0),
        "engine",
        lambda found: _cheapest(found["llama_cpp"]) / _cheapest(found["ours"]),
    ),
    "identical_text_share": (Goal(0.99), "identical", lambda found: found["num_identical"] / found["num_prompts"]),
    "spark_overhead": (
        Goal(0.1, NO_MORE_THAN),
        "spark",
        lambda found: found["cpu_seconds"] / found["bare_cpu_seconds"] - 1,
    ),
    "http_share_of_ideal": (
        Goal(0.9),
        "http",
        lambda found: median(each["share_of_ideal"] for each in found["rounds"]),
    ),
    "unchanged_day_speedup": (
        Goal(20.0),
        "days",
        lambda found: _seconds(found, "full") / _seconds(found, "again"),
    ),
    "unchanged_day_calls": (Goal(0.0, NO_MORE_THAN), "days", lambda found: float(found["num_calls_again"])),
    "one_percent_cost_share": (Goal(0.05, NO_MORE_THAN), "days", _above_unchanged_day),
    "one_percent_written_over_changed": (
        Goal(1.0, NO_MORE_THAN),
        "days",
        lambda found: _most_written(found) / found["num_changed"],
    ),
    "faults_recovered_share": (
        Goal(0.99),
        "faults",
        lambda found: found["num_recovered"] / found["num_hit_by_transient"],
    ),
    "faults_paid_twice": (Goal(0.0, NO_MORE_THAN), "faults", lambda found: float(found["num_paid_twice"])),
    "validator_precision": (Goal(0.9), "validator", lambda found: found["precision"]),
    "validator_recall": (Goal(0.8), "validator", lambda found: found["recall"]),
    "poisoned_published": (
        Goal(0.0, NO_MORE_THAN),
        "poisoned",
        lambda found: float(found["num_by_model"] + found["num_by_facts"]),
    ),
    "ledger_antijoin_seconds": (Goal(180.0, NO_MORE_THAN), "ledger", lambda found: found["seconds"]),
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
    return [
        f"{found['num_prompts']:,} prompts of the refresh, items before users, the same for all, one thread; loading "
        "does not count. llama.cpp is the wheel on PyPI, which by its own README is built without the instructions "
        "that newer processors have (AVX-512, AMX); one compiled on the machine may be quicker.",
        Table(["side", "setting", "CPU seconds", "tokens written"], rows),
    ]


def spark(found: Found) -> list[Part]:
    return [
        f"{found['num_prompts']:,} descriptions: {found['cpu_seconds']:.0f} CPU seconds of driver, JVM and one worker, "
        f"judging and the ledger included, {found['bare_cpu_seconds']:.0f} of the engine alone in one process. "
        "Starting the session and loading the model do not count."
    ]


def http(found: Found) -> list[Part]:
    rows = [
        [
            f"{each['num_requests']:,}",
            f"{each['requests_per_second']:.0f}",
            f"{each['share_of_ideal']:.3f}",
            f"{each['client_cpu_ms_per_request']:.2f}",
            f"{each['server_cpu_ms_per_request']:.2f}",
        ]
        for each in found["rounds"]
    ]
    return [
        "Server in another process on the same two cores; the ideal is 128 requests a second.",
        Table(["requests", "a second", "share of ideal", "client CPU ms", "server CPU ms"], rows),
    ]


def faults(found: Found) -> list[Part]:
    untrusted = found["by_fault"]["certificate error"]
    rows = [[fault, f"{met['num_items']:,}", f"{met['num_with_text']:,}"] for fault, met in found["by_fault"].items()]
    return [
        f"{found['num_items']:,} items, {found['num_requests']:,} requests, the day run twice; "
        f"{found['num_described']:,} are described. Of {found['num_hit_by_transient']:,} that met one to three passing "
        f"faults {found['num_recovered']:,} have the model's text; of {found['num_hit_by_lasting']:,} with a refusal, "
        f"an ungrounded text, a wrong model or a rejected request {found['num_lasting_published']:,} have. Answers "
        f"paid twice: {found['num_paid_twice']:,}. Tokens: {found['num_tokens']:,} of {found['max_tokens']:,} allowed.",
        f"Of {untrusted['num_items']:,} items asked for at a server whose certificate nobody trusts "
        f"{untrusted['num_with_reason']:,} are described by facts for this reason, after {untrusted['num_calls']:,} "
        "calls: it is not tried again.",
        Table(["fault", "items that met it", "with the model's text"], rows),
    ]


def ledger(found: Found) -> list[Part]:
    return [
        f"{found['num_inputs']:,} inputs against {found['num_keys']:,} keys: {found['seconds']:.0f} seconds; "
        f"{found['num_unpaid']:,} are new. The Python driver grew by {found['driver_grew_megabytes']:.0f} MB; the JVM, "
        f"which works in the same process locally, held {found['jvm_megabytes']:,.0f} MB."
    ]


DAYS = {
    "full": "everything new",
    "again": "the same day again",
    "one_percent": "one in a hundred changed",
    "nothing": "a day without a change",
}


def days(found: Found) -> list[Part]:
    stages = list(found["days"]["full"])
    rows = [
        [
            DAYS[day],
            *(f"{seconds[stage]:.1f}" for stage in stages),
            f"{sum(seconds.values()):.1f}",
            f"{found['num_encoded'][day]:,}",
            f"{found['num_upserted'][day]:,}",
        ]
        for day, seconds in found["days"].items()
    ]
    share = _seconds(found, "one_percent") / _seconds(found, "full")
    return [
        f"{found['num_entities']:,} users and items described from their facts, encoded and written to Milvus-Lite; "
        f"seconds in one Spark session, its start excluded. {found['num_changed']:,} of them changed.",
        Table(["day", *stages, "together", "texts encoded", "vectors written"], rows),
        "The share in the goals leaves out what a day without a change costs: the stages take that long however "
        "little changed. It is no constant: they read and hash the facts of all again and carry unchanged rows into "
        f"the new day. With it, the day on which one in a hundred changed took {share:.0%} of the full one. Where a "
        "language model writes the texts, the full day takes hours longer and the others do not.",
    ]


def validator(found: Found) -> list[Part]:
    return [
        f"On {found['num_outputs']:,} labelled texts that it was not tuned on, {found['num_usable']:,} of them usable: "
        f"{found['num_accepted']:,} accepted, precision {found['precision']:.3f}, recall {found['recall']:.3f}. "
        "`python -m benchmarks.generation.validator` prints it by model and by reason. One real model, SmolLM2-135M "
        "in five settings, wrote most of them; the others were written for the set in the way of a large model. Label "
        "some texts of another model before trusting the figures for it."
    ]


def poisoned(found: Found) -> list[Part]:
    return [
        f"{found['num_inputs']:,} hostile inputs and {found['num_answers']:,} answers of a model that obeys them: "
        f"{found['num_by_model']:,} published by the model's text, {found['num_by_facts']:,} by the facts."
    ]


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
