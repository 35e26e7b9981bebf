"""What a day is expected to take: means where there are any, else the estimate the caps are kept by."""

import pytest

from spark_jobs.commands.forecast_table import as_json, as_text
from spark_jobs.generation.budget import Caps, Estimate
from spark_jobs.generation.expected_cost import ESTIMATED, MEASURED, Expected, Forecast, Rates, Work, allowed
from spark_jobs.generation.ledger_totals import Account
from spark_jobs.generation.live_generation import Prices

PRICES = Prices(input=2.0, output=10.0)
ESTIMATE = Estimate(prompt_bytes=450, max_new_tokens=50, input_price=2.0, output_price=10.0, num_tries=2)
# 100 texts: 20 were asked for again, 10 calls failed, the rest took three seconds each, six at a time.
ACCOUNT = Account(
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


def test_the_ledgers_means_are_per_key_with_repairs_and_failed_calls():
    rates = Rates.of(ACCOUNT, ESTIMATE, facts_bytes=150)

    assert rates == Rates(MEASURED, 100, 1.3, 1.2, 0.2, 240.0, 60.0, 3.0, 6.0)
    # 7200 keys x 1.2 answers x 3 s / 6 at a time = 4320 s
    assert rates.expect(7200, PRICES) == Expected(7200, 9360, 1_728_000, 432_000, pytest.approx(7.776), 1.2)


def test_too_few_keys_mean_nothing_and_the_estimate_knows_no_time():
    few = Account(num_answers=19, num_calls=19, num_input_tokens=1900, seconds=19.0, wall_seconds=19.0)
    rates = Rates.of(few, ESTIMATE, facts_bytes=150)

    assert rates == Rates(ESTIMATED, 19, 2, 2, 1, 400, 100, None, None)  # 2 x (450 + 150) / 3 and 2 x 50
    assert rates.expect(10, PRICES) == Expected(10, 20, 4000, 1000, pytest.approx(0.018), None)


def test_nothing_but_failed_calls_says_nothing_of_an_answer():
    silent = Account(num_unanswered=50, num_calls=250, num_failed_calls=250, seconds=900.0, wall_seconds=900.0)
    assert Rates.of(silent, ESTIMATE, facts_bytes=150).source == ESTIMATED


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
    assert allowed(100, caps, ESTIMATE, facts_bytes=150) == expected


def test_a_model_without_a_price_is_not_capped_by_cost():
    free = Estimate(450, 50, input_price=0.0, output_price=0.0)
    assert allowed(100, Caps(1000, cost=1.0), free, facts_bytes=150) == 100


def test_a_cap_on_calls_is_one_on_texts():
    assert allowed(100, Caps(1000, num_calls=7), ESTIMATE, facts_bytes=150) == 7


def forecast(entity, num_new, num_allowed, account=ACCOUNT):
    """Of a day that has spent a tenth of its caps."""
    rates = Rates.of(account, ESTIMATE, facts_bytes=150)
    work = Work(2000, 500, 300, num_new, num_allowed, num_a_day=num_allowed * 10 // 9)
    return Forecast.of(entity, work, rates, PRICES)


@pytest.mark.parametrize(("num_new", "num_allowed", "expected"), [(1000, 270, 4), (0, 0, 0), (1000, 0, None)])
def test_days_until_everyone_is_described_are_whole_ones(num_new, num_allowed, expected):
    assert forecast("item", num_new, num_allowed).num_days == expected


def test_people_see_both_kinds_side_by_side_and_where_the_numbers_come_from():
    text = as_text([forecast("item", 1200, 600), forecast("user", 1000, 0, Account())])
    lines = {line[:34].strip(): line[34:].split() for line in text.splitlines()}

    assert lines["entities"] == ["2,000", "2,000"]
    assert lines["in the ledger"] == ["500", "500"]
    assert lines["answered, history not grown"] == ["300", "300"]
    assert lines["new keys"] == ["1,200", "1,000"]
    assert lines["allowed by the day's caps"] == ["600", "0"]
    assert lines["of these: calls"] == ["780", "0"]
    assert lines["days of such caps for all"] == ["2", "never"]
    assert "items: means of 100 keys in the ledger: 1.30 calls a key, 20% asked again, 3.00 s an answer" in text
    assert "users: upper estimate, as the caps are kept (0 keys" in text
    assert "speed unknown: give --seconds-per-answer and --parallelism" in text
    assert text.endswith("today in all: 600 texts, 180,000 tokens, cost 0.65, unknown hours one after the other")


def test_programs_get_every_number_by_name():
    found = as_json([forecast("item", 1200, 600)])["item"]

    assert found["num_new"] == 1200
    assert found["num_allowed"] == 600
    assert found["today"]["num_input_tokens"] == 144_000
    assert found["all_new"]["num_output_tokens"] == 72_000
    assert found["num_days"] == 2
    assert found["rates"]["source"] == "ledger"
