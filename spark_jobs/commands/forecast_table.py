"""Forecasts as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from spark_jobs.generation.expected_cost import MEASURED, MIN_KEYS, ExpectedUsage, Forecast, UsagePerKey


def as_json(forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """All numbers by entity and field name."""
    return {
        each.entity: {
            **asdict(each.counts),
            "today": asdict(each.today),
            "all_new": asdict(each.all_new),
            "num_days": each.num_days,
            "rates": asdict(each.per_key),
        }
        for each in forecasts
    }


def as_text(forecasts: Sequence[Forecast]) -> str:
    """A text table with one column for items and one for users, and the source of the numbers."""
    is_capped = any(each.counts.num_allowed < each.counts.num_new for each in forecasts)
    rows = [
        ("", [f"{each.entity}s" for each in forecasts]),
        ("entities", [f"{each.counts.num_entities:,}" for each in forecasts]),
        ("  answered before", [f"{each.counts.num_cache_hits:,}" for each in forecasts]),
        ("  kept, history has not grown", [f"{each.counts.num_kept:,}" for each in forecasts]),
        ("texts to write", [f"{each.counts.num_new:,}" for each in forecasts]),
        ("  allowed by the day's caps", [f"{each.counts.num_allowed:,}" for each in forecasts]),
        *_expected("of these: ", [each.today for each in forecasts]),
    ]
    if is_capped:
        rows += _expected("of all texts: ", [each.all_new for each in forecasts])
        rows.append(
            (
                "days to describe all",
                ["never" if each.num_days is None else f"{each.num_days:,}" for each in forecasts],
            )
        )
    lines = [f"{name:<34}" + "".join(f"{value:>18}" for value in values) for name, values in rows]
    lines += [f"{each.entity}s: {_origin(each.per_key)}" for each in forecasts]
    total = sum((each.today for each in forecasts[1:]), forecasts[0].today)
    lines.append(
        f"today in total: {total.num_keys:,} texts, {total.num_input_tokens + total.num_output_tokens:,} tokens, "
        f"cost {total.cost:,.2f}, {_or_unknown(total.hours, ',.2f')} hours, items and users in sequence"
    )
    if total.num_keys and not total.cost:
        lines.append("no price set: GRASP_LLM_INPUT_PRICE, GRASP_LLM_OUTPUT_PRICE")
    return "\n".join(lines)


def _expected(of: str, each: Sequence[ExpectedUsage]) -> list[tuple[str, list[str]]]:
    return [
        (f"{of}calls", [f"{one.num_calls:,}" for one in each]),
        (" " * len(of) + "tokens in", [f"{one.num_input_tokens:,}" for one in each]),
        (" " * len(of) + "tokens out", [f"{one.num_output_tokens:,}" for one in each]),
        (" " * len(of) + "cost", [f"{one.cost:,.2f}" for one in each]),
        (" " * len(of) + "hours", [_or_unknown(one.hours, ",.2f") for one in each]),
    ]


def _origin(per_key: UsagePerKey) -> str:
    speed = "unknown speed (set --seconds-per-answer and --parallelism)"
    if per_key.seconds_per_answer is not None and per_key.parallelism:
        speed = f"{per_key.seconds_per_answer:.2f} s per answer, {per_key.parallelism:.1f} concurrently"
    if per_key.source == MEASURED:
        return (
            f"means of {per_key.num_measured:,} texts in the ledger: {per_key.calls:.2f} calls per text, "
            f"{per_key.repaired_share:.0%} repaired, {speed}"
        )
    return (
        f"upper estimate, as used for the caps (the ledger has {per_key.num_measured:,} texts of this prompt and "
        f"model, means need {MIN_KEYS}); {speed}"
    )


def _or_unknown(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
