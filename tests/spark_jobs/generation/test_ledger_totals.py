"""Totals of a ledger, without Spark: every key counts once, by its latest answer."""

import pytest

from grasp import tables
from grasp.versions import Versions
from spark_jobs.generation.ledger_totals import LedgerTotals, connect_to_ledger, ledger_totals

DAY, NEXT = "1998-03-01", "1998-03-02"
TABLE = tables.ITEM_GENERATION


@pytest.fixture
def of(settings, item_rows):
    versions = Versions(settings)

    def of(day=None, model=versions.llm):
        return ledger_totals(item_rows.folder, TABLE, versions.prompt("item"), model, day=day)

    return of


def test_every_key_counts_once_by_its_latest_answer(item_rows, of):
    accepted, refused, failed = item_rows.accepted, item_rows.refused, item_rows.failed
    item_rows.pay(
        DAY,
        accepted("good"),
        refused("mended", 1),
        accepted("mended", 2, is_repair=True),
        refused("hopeless", 3),
        refused("hopeless", 4, reason="too_short", is_repair=True),
        failed("silent", 5),
        refused("half", 6, reason="url"),
        failed("half", 7, is_repair=True),
    )

    found = of(DAY)

    assert (found.num_answers, found.num_accepted, found.num_refused, found.num_unanswered) == (4, 2, 2, 1)
    assert (found.num_repairs, found.num_repaired) == (3, 1)
    assert found.reasons == {"too_short": 1, "timeout": 1, "url": 1}
    assert (found.num_calls, found.num_failed_calls) == (12, 6)
    assert (found.num_input_tokens, found.num_output_tokens, found.cost) == (600, 120, 3.0)
    assert (found.num_keys, found.num_failed) == (5, 3)


def test_time_between_two_runs_is_not_counted(item_rows, of):
    seconds = (0, 10, 20, 5000, 5010)
    item_rows.pay(DAY, *(item_rows.accepted(f"key {second}", second) for second in seconds))

    found = of(DAY)

    assert found.seconds == 10.0
    assert found.wall_seconds == 2 + 10 + 10 + 2 + 10  # the first answer of a run took what it took
    assert found.answers_per_minute == round(60 * 5 / 34, 3)


def test_the_time_of_a_batch_answered_at_once_is_the_sum_of_its_shares(item_rows, of):
    moments = (0, 0.001, 0.002, 0.003, 6, 6.001)
    item_rows.pay(DAY, *(item_rows.accepted(f"key {n}", second, seconds=1.5) for n, second in enumerate(moments)))

    assert of(DAY).wall_seconds == pytest.approx(4 * 1.5 + 6.001)


def test_totals_are_by_model_and_day(item_rows, of):
    item_rows.pay(DAY, item_rows.accepted("a"), item_rows.accepted("b", model_revision="model-2"))
    item_rows.pay(NEXT, item_rows.accepted("c"), item_rows.accepted("a", 9))

    assert of(DAY).num_answers == 1
    assert of(NEXT).num_answers == 2
    assert (of().num_answers, of().num_calls) == (2, 3)
    assert of(DAY, "model-3") == LedgerTotals()


def test_without_a_day_only_the_last_days_count(item_rows, of):
    for number in range(1, 10):
        item_rows.pay(f"1998-03-{number:02d}", item_rows.accepted(f"key {number}"))

    assert of().num_answers == 7


def test_an_empty_ledger_has_zero_totals(item_rows, of):
    assert of() == LedgerTotals()
    assert of().answers_per_minute is None
    assert connect_to_ledger(item_rows.folder, TABLE).execute("SELECT entity_id, day FROM ledger").fetchall() == []
