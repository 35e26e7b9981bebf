"""Write what the measurements of the generation stage say: tables and the figures with a goal.

    python -m benchmarks.generation.report DIR

Reads:   measurements.jsonl in DIR
Writes:  report.md and summary.json in DIR; again on the same measurements, the same files

Kinds of measurements: validator, poisoned, http (a round each), faults, ledger, engine, identical, spark, days.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.core.invocation import of_report, write_again
from benchmarks.core.machine import describe as describe_machine
from benchmarks.core.markdown import goals, table
from benchmarks.core.measurements import MEASUREMENTS_FILE, Measurements
from benchmarks.core.summary import Figure, Goal, write_summary

REPORT_FILE = "report.md"
KINDS = ("validator", "poisoned", "http", "faults", "ledger", "engine", "identical", "spark", "days")
GOALS = {
    "descriptions_per_cpu_second_over_xllamacpp": Goal(1.0),
    "identical_text_share": Goal(0.99),
    "spark_overhead": Goal(0.1, "at most"),
    "http_share_of_ideal": Goal(0.9),
    "unchanged_day_speedup": Goal(20.0),
    "unchanged_day_calls": Goal(0.0, "at most"),
    "one_percent_cost_share": Goal(0.05, "at most"),
    "one_percent_written_over_changed": Goal(1.0, "at most"),
    "faults_recovered_share": Goal(0.99),
    "faults_paid_twice": Goal(0.0, "at most"),
    "validator_precision": Goal(0.9),
    "validator_recall": Goal(0.8),
    "poisoned_published": Goal(0.0, "at most"),
    "ledger_antijoin_seconds": Goal(180.0, "at most"),
}


def figures(measurements: Measurements) -> dict[str, Figure]:
    """The figures with a goal; one whose measurement is missing has no value."""
    values: dict[str, float | None] = dict.fromkeys(GOALS)
    for found in measurements.of("engine"):
        values["descriptions_per_cpu_second_over_xllamacpp"] = _best(found["llama_cpp"]) / _best(found["ours"])
    for found in measurements.of("identical"):
        values["identical_text_share"] = found["num_identical"] / found["num_prompts"]
    for found in measurements.of("spark"):
        values["spark_overhead"] = found["cpu_seconds"] / found["bare_cpu_seconds"] - 1
    if rounds := measurements.of("http"):
        values["http_share_of_ideal"] = median(found["share_of_ideal"] for found in rounds)
    for found in measurements.of("days"):
        seconds = {day: sum(stages.values()) for day, stages in found["days"].items()}
        values["unchanged_day_speedup"] = seconds["full"] / seconds["again"]
        values["unchanged_day_calls"] = float(found["num_calls_again"])
        values["one_percent_cost_share"] = max(0.0, seconds["one_percent"] - seconds["nothing"]) / seconds["full"]
        most = max(found["num_encoded"]["one_percent"], found["num_upserted"]["one_percent"])
        values["one_percent_written_over_changed"] = most / found["num_changed"]
    for found in measurements.of("faults"):
        values["faults_recovered_share"] = found["num_recovered"] / found["num_hit_by_transient"]
        values["faults_paid_twice"] = float(found["num_paid_twice"])
    for found in measurements.of("validator"):
        values["validator_precision"], values["validator_recall"] = found["precision"], found["recall"]
    for found in measurements.of("poisoned"):
        values["poisoned_published"] = float(found["num_by_model"] + found["num_by_facts"])
    for found in measurements.of("ledger"):
        values["ledger_antijoin_seconds"] = found["seconds"]
    return {name: Figure(values[name], goal) for name, goal in GOALS.items()}


def _best(costs: Mapping[str, Mapping[str, float]]) -> float:
    """CPU seconds of a side's cheapest setting."""
    return min(each["cpu_seconds"] for each in costs.values())


def write(folder: Path, command: str) -> None:
    """Write report and summary. Raises `FileNotFoundError` when nothing was measured in the folder."""
    measurements = Measurements(folder)
    if not measurements.all():
        raise FileNotFoundError(f"no measurement in {measurements.file}: run python -m benchmarks.generation first")
    lines = head(measurements, command)
    for kind, section in SECTIONS.items():
        if found := measurements.of(kind):
            lines += section(found)
    (folder / REPORT_FILE).write_text("\n".join(lines).rstrip() + "\n")
    machine = measurements.all()[0].conditions.machine
    write_summary(folder, command, figures(measurements), measured_on=machine, measured_at=measurements.commits())


def head(measurements: Measurements, command: str) -> list[str]:
    """On what it was measured, and the figures with their goals."""
    conditions = measurements.all()[0].conditions
    return [
        "# Generating descriptions",
        "",
        f"- Machine: {describe_machine(conditions.machine)}.",
        f"- Command: `{command}`",
        f"- Source: commit {measurements.commits()}.",
        "- Model: SmolLM2-135M-Instruct, greedy; ours in float32, llama.cpp's the Q4_1 file that ours was made from.",
        "",
        *goals(figures(measurements)),
    ]


def engine_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    rows = [
        [side, setting, f"{cost['cpu_seconds'] / found['num_prompts']:.2f}", f"{cost['num_output_tokens']:,}"]
        for side, settings in (
            ("ours, batches of", found["ours"]),
            ("llama.cpp with prefix cache, parallel slots", found["llama_cpp"]),
        )
        for setting, cost in settings.items()
    ]
    return [
        "## CPU seconds of a description",
        "",
        f"{found['num_prompts']:,} prompts of the refresh, items before users, the same for all, one thread; "
        "loading does not count. llama.cpp is the wheel on PyPI, which by its own README is built without the "
        "instructions that newer processors have (AVX-512, AMX); one compiled on the machine may be quicker.",
        "",
        *table(["side", "setting", "CPU seconds", "tokens written"], rows),
    ]


def spark_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    return [
        "## Spark around the engine",
        "",
        f"{found['num_prompts']:,} descriptions: {found['cpu_seconds']:.0f} CPU seconds of driver, JVM and one worker, "
        f"judging and the ledger included, {found['bare_cpu_seconds']:.0f} of the engine alone in one process. "
        "Starting the session and loading the model do not count.",
        "",
    ]


def http_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            f"{found['num_requests']:,}",
            f"{found['requests_per_second']:.0f}",
            f"{found['share_of_ideal']:.3f}",
            f"{found['client_cpu_ms_per_request']:.2f}",
            f"{found['server_cpu_ms_per_request']:.2f}",
        ]
        for found in measured
    ]
    return [
        "## A server that answers in half a second, 64 requests at once",
        "",
        "Server in another process on the same two cores; the ideal is 128 requests a second.",
        "",
        *table(["requests", "a second", "share of ideal", "client CPU ms", "server CPU ms"], rows),
    ]


def faults_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    untrusted = found["by_fault"]["certificate error"]
    rows = [(fault, f"{met['num_items']:,}", f"{met['num_with_text']:,}") for fault, met in found["by_fault"].items()]
    return [
        "## A server that fails in every way",
        "",
        f"{found['num_items']:,} items, {found['num_requests']:,} requests, the day run twice; "
        f"{found['num_described']:,} are described. Of {found['num_hit_by_transient']:,} that met one to three passing "
        f"faults {found['num_recovered']:,} have the model's text; of {found['num_hit_by_lasting']:,} with a refusal, "
        f"an ungrounded text, a wrong model or a rejected request {found['num_lasting_published']:,} have. Answers "
        f"paid twice: {found['num_paid_twice']:,}. Tokens: {found['num_tokens']:,} of {found['max_tokens']:,} allowed.",
        "",
        f"Of {untrusted['num_items']:,} items asked for at a server whose certificate nobody trusts "
        f"{untrusted['num_with_reason']:,} are described by facts for this reason, after {untrusted['num_calls']:,} "
        "calls: it is not tried again.",
        "",
        *table(["fault", "items that met it", "with the model's text"], rows),
    ]


def ledger_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    return [
        "## A large ledger",
        "",
        f"{found['num_inputs']:,} inputs against {found['num_keys']:,} keys: {found['seconds']:.0f} seconds; "
        f"{found['num_unpaid']:,} are new. The Python driver grew by {found['driver_grew_megabytes']:.0f} MB; the JVM, "
        f"which works in the same process locally, held {found['jvm_megabytes']:,.0f} MB.",
        "",
    ]


def days_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    stages = list(found["days"]["full"])
    names = {
        "full": "everything new",
        "again": "the same day again",
        "one_percent": "one in a hundred changed",
        "nothing": "a day without a change",
    }
    rows = [
        [
            names[day],
            *(f"{seconds[stage]:.1f}" for stage in stages),
            f"{sum(seconds.values()):.1f}",
            f"{found['num_encoded'][day]:,}",
            f"{found['num_upserted'][day]:,}",
        ]
        for day, seconds in found["days"].items()
    ]
    return [
        "## Days on which little changes",
        "",
        f"{found['num_entities']:,} users and items described from their facts, encoded and written to Milvus-Lite; "
        f"seconds in one Spark session, its start excluded. {found['num_changed']:,} of them changed.",
        "",
        *table(["day", *stages, "together", "texts encoded", "vectors written"], rows),
        "The share in the goals leaves a day without a change out, as what the stages cost however little changed. It "
        "is no constant: the facts of all are read and hashed again, unchanged rows carried into the new day. "
        f"With it, the day on which one in a hundred changed took {_together(found, 'one_percent'):.0%} of the full "
        "one; where a language model writes the texts, the full one takes hours longer and the others do not.",
        "",
    ]


def _together(found: Mapping[str, Any], day: str) -> float:
    """Seconds of a day's stages as a share of those of a full one."""
    return sum(found["days"][day].values()) / sum(found["days"]["full"].values())


def validator_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    return [
        "## The validator",
        "",
        f"On {found['num_outputs']:,} labelled texts that it was not tuned on, {found['num_usable']:,} of them usable: "
        f"{found['num_accepted']:,} accepted, precision {found['precision']:.3f}, recall {found['recall']:.3f}. "
        "`python -m benchmarks.generation.validator` prints it by model and by reason. One real model, SmolLM2-135M "
        "in five settings, wrote most of them; the others were written for the set in the way of a large model. Label "
        "some texts of another model before trusting the figures for it.",
        "",
    ]


def poisoned_section(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    found = measured[-1]
    return [
        "## Hostile facts",
        "",
        f"{found['num_inputs']:,} hostile inputs and {found['num_answers']:,} answers of a model that obeys them: "
        f"{found['num_by_model']:,} published by the model's text, {found['num_by_facts']:,} by the facts.",
        "",
    ]


SECTIONS = {
    "engine": engine_section,
    "spark": spark_section,
    "http": http_section,
    "faults": faults_section,
    "ledger": ledger_section,
    "days": days_section,
    "validator": validator_section,
    "poisoned": poisoned_section,
}


def main() -> None:
    write_again(
        "benchmarks.generation.report",
        lambda folder: write(folder, of_report("python -m benchmarks.generation", folder)),
        MEASUREMENTS_FILE,
        REPORT_FILE,
    )


if __name__ == "__main__":
    main()
