"""Forecasts for people and for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from spark_jobs.generation.expected_cost import MEASURED, MIN_MEASURED, Expected, Forecast, Rates


def as_json(forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """By entity, every number by the name it has here."""
    return {
        each.entity: {
            **asdict(each.work),
            "today": asdict(each.today),
            "all_new": asdict(each.all_new),
            "num_days": each.num_days,
            "rates": asdict(each.rates),
        }
        for each in forecasts
    }


def as_text(forecasts: Sequence[Forecast]) -> str:
    """A table for people: one column for each kind of description, and where its expectations come from."""
    is_capped = any(each.work.num_allowed < each.work.num_new for each in forecasts)
    rows = [
        ("", [f"{each.entity}s" for each in forecasts]),
        ("entities", [f"{each.work.num_entities:,}" for each in forecasts]),
        ("  in the ledger", [f"{each.work.num_cache_hits:,}" for each in forecasts]),
        ("  answered, history not grown", [f"{each.work.num_kept:,}" for each in forecasts]),
        ("new keys", [f"{each.work.num_new:,}" for each in forecasts]),
        ("  allowed by the day's caps", [f"{each.work.num_allowed:,}" for each in forecasts]),
        *_expected("of these: ", [each.today for each in forecasts]),
    ]
    if is_capped:
        rows += _expected("of all new keys: ", [each.all_new for each in forecasts])
        rows.append(
            (
                "days of such caps for all",
                ["never" if each.num_days is None else f"{each.num_days:,}" for each in forecasts],
            )
        )
    lines = [f"{name:<34}" + "".join(f"{value:>18}" for value in values) for name, values in rows]
    lines += [f"{each.entity}s: {_origin(each.rates)}" for each in forecasts]
    total = sum((each.today for each in forecasts[1:]), forecasts[0].today)
    lines.append(
        f"today in all: {total.num_keys:,} texts, {total.num_input_tokens + total.num_output_tokens:,} tokens, "
        f"cost {total.cost:,.2f}, {_or_unknown(total.hours, ',.2f')} hours one after the other"
    )
    return "\n".join(lines)


def _expected(of: str, each: Sequence[Expected]) -> list[tuple[str, list[str]]]:
    return [
        (f"{of}calls", [f"{one.num_calls:,}" for one in each]),
        (" " * len(of) + "tokens in", [f"{one.num_input_tokens:,}" for one in each]),
        (" " * len(of) + "tokens out", [f"{one.num_output_tokens:,}" for one in each]),
        (" " * len(of) + "cost", [f"{one.cost:,.2f}" for one in each]),
        (" " * len(of) + "hours", [_or_unknown(one.hours, ",.2f") for one in each]),
    ]


def _origin(rates: Rates) -> str:
    speed = "speed unknown: give --seconds-per-answer and --parallelism"
    if rates.seconds_per_answer is not None and rates.parallelism:
        speed = f"{rates.seconds_per_answer:.2f} s an answer, {rates.parallelism:.1f} at a time"
    if rates.source == MEASURED:
        return (
            f"means of {rates.num_measured:,} keys in the ledger: {rates.calls:.2f} calls a key, "
            f"{rates.repaired_share:.0%} asked again, {speed}"
        )
    return (
        f"upper estimate, as the caps are kept ({rates.num_measured:,} keys of this prompt and model in the ledger, "
        f"{MIN_MEASURED} are needed for means); {speed}"
    )


def _or_unknown(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)
