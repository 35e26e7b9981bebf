"""The expected cost uses the ledger's means if there are enough keys, else the estimate used for the caps."""

import pytest

from spark_jobs.commands.forecast_table import as_json, as_text
from spark_jobs.generation.budget import Caps, UsageEstimate
from spark_jobs.generation.expected_cost import (
    ESTIMATED,
    MEASURED,
    ExpectedUsage,
    Forecast,
    KeyCounts,
    UsagePerKey,
    count_allowed_keys,
)
from spark_jobs.generation.ledger_totals import LedgerTotals
from spark_jobs.models.account import Prices

PRICES = Prices(input=2.0, output=10.0)
ESTIMATE = UsageEstimate(prompt_bytes=450, max_new_tokens=50, input_price=2.0, output_price=10.0, num_tries=2)
ESTIMATED_KEY = UsagePerKey.of(LedgerTotals(), ESTIMATE, facts_bytes=150)
# 100 texts: 20 were asked for again, 10 calls failed, the rest took three seconds each, six at a time.
TOTALS = LedgerTotals(
    num_answers=98,
    num_accepted=90,
    num_refused=8,
    num_repairs=20,
    num_unanswered=2,
    num_calls=130,
    num_failed_calls=10,
    num_input_tokens=24_000,
    num_output_tokens=6_000,
    seconds=360.0,
    wall_seconds=60.0,
)


def test_means_per_key_include_repairs_and_failed_calls():
    per_key = UsagePerKey.of(TOTALS, ESTIMATE, facts_bytes=150)

    assert per_key == UsagePerKey(MEASURED, 100, 1.3, 1.2, 0.2, 240.0, 60.0, 3.0, 6.0)
    # 7200 keys x 1.2 answers x 3 s / 6 at a time = 4320 s
    assert per_key.expect(7200, PRICES) == ExpectedUsage(7200, 9360, 1_728_000, 432_000, pytest.approx(7.776), 1.2)


def test_with_too_few_keys_the_estimate_is_used_without_a_speed():
    few = LedgerTotals(num_answers=19, num_calls=19, num_input_tokens=1900, seconds=19.0, wall_seconds=19.0)
    per_key = UsagePerKey.of(few, ESTIMATE, facts_bytes=150)

    assert per_key == UsagePerKey(ESTIMATED, 19, 2, 2, 1, 400, 100, None, None)  # 2 x (450 + 150) / 3 and 2 x 50
    assert per_key.expect(10, PRICES) == ExpectedUsage(10, 20, 4000, 1000, pytest.approx(0.018), None)


def test_failed_calls_alone_give_no_means():
    silent = LedgerTotals(num_unanswered=50, num_calls=250, num_failed_calls=250, seconds=900.0, wall_seconds=900.0)
    assert UsagePerKey.of(silent, ESTIMATE, facts_bytes=150).source == ESTIMATED


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        (Caps(1000), 100),  # no more than there are
        (Caps(30), 30),
        (Caps(1000, num_tokens=2499), 4),  # 400 + 100 tokens a key
        (Caps(1000, num_tokens=2500), 5),
        (Caps(1000, cost=0.0179), 9),  # 0.0018 a key
        (Caps(3, num_tokens=2500, cost=0.0179), 3),
    ],
)
def test_the_tightest_cap_decides(caps, expected):
    assert count_allowed_keys(100, caps, ESTIMATED_KEY, PRICES) == expected


def test_the_ledgers_means_decide_once_there_are_some():
    measured = UsagePerKey.of(TOTALS, ESTIMATE, facts_bytes=150)
    assert count_allowed_keys(100, Caps(1000, num_tokens=2500), measured, PRICES) == 8  # 240 + 60 tokens a key


def test_a_cost_cap_has_no_effect_without_prices():
    assert count_allowed_keys(100, Caps(1000, cost=1.0), ESTIMATED_KEY, Prices()) == 100


def test_a_cap_on_calls_also_limits_texts():
    assert count_allowed_keys(100, Caps(1000, num_calls=7), ESTIMATED_KEY, PRICES) == 3  # each with its repair


def test_a_server_that_reports_no_tokens_has_no_room_limited_by_them():
    unknown = LedgerTotals(num_answers=20, num_calls=20, seconds=20.0, wall_seconds=20.0)
    measured = UsagePerKey.of(unknown, ESTIMATE, facts_bytes=150)
    assert count_allowed_keys(100, Caps(1000, num_tokens=2500), measured, PRICES) == 100


def forecast(entity, num_new, num_allowed, totals=TOTALS):
    """A forecast for a day that has used a tenth of its caps."""
    per_key = UsagePerKey.of(totals, ESTIMATE, facts_bytes=150)
    counts = KeyCounts(2000, 500, 300, num_new, num_allowed, num_a_day=num_allowed * 10 // 9)
    return Forecast.of(entity, counts, per_key, PRICES)


@pytest.mark.parametrize(("num_new", "num_allowed", "expected"), [(1000, 270, 4), (0, 0, 0), (1000, 0, None)])
def test_days_until_all_are_described_are_rounded_up(num_new, num_allowed, expected):
    assert forecast("item", num_new, num_allowed).num_days == expected


def test_the_text_has_both_kinds_and_the_source_of_the_numbers():
    text = as_text([forecast("item", 1200, 600), forecast("user", 1000, 0, LedgerTotals())])
    lines = {line[:34].strip(): line[34:].split() for line in text.splitlines()}

    assert lines["entities"] == ["2,000", "2,000"]
    assert lines["answered before"] == ["500", "500"]
    assert lines["kept, history has not grown"] == ["300", "300"]
    assert lines["texts to write"] == ["1,200", "1,000"]
    assert lines["allowed by the day's caps"] == ["600", "0"]
    assert lines["of these: calls"] == ["780", "0"]
    assert lines["days to describe all"] == ["2", "never"]
    assert "items: means of 100 texts in the ledger: 1.30 calls per text, 20% repaired, 3.00 s per answer" in text
    assert "users: upper estimate, as used for the caps (the ledger has 0 texts" in text
    assert "unknown speed (set --seconds-per-answer and --parallelism)" in text
    assert text.endswith(
        "today in total: 600 texts, 180,000 tokens, cost 0.65, unknown hours, items and users in sequence"
    )


def test_the_json_has_every_number_by_name():
    found = as_json([forecast("item", 1200, 600)])["item"]

    assert found["num_new"] == 1200
    assert found["num_allowed"] == 600
    assert found["today"]["num_input_tokens"] == 144_000
    assert found["all_new"]["num_output_tokens"] == 72_000
    assert found["num_days"] == 2
    assert found["rates"]["source"] == "ledger"
