"""The forecast counts what a run would do, with the same frames, and writes nothing."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from grasp import tables
from grasp.moments import VoteRule, centred, contexts
from grasp.partitions import MissingPartitionError
from spark_jobs import find_moments
from spark_jobs.commands.forecast import Speed, forecast_day, main
from spark_jobs.commands.forecast_moments import MomentCounts, count_day, forecast_moments, measure_block
from spark_jobs.describe_items import read_item_facts
from spark_jobs.describe_users import read_user_facts
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import describe_entities
from spark_jobs.generation.expected_cost import KeyCounts
from spark_jobs.generation.prompts import ITEM, USER
from spark_jobs.models.language_model import Generation
from spark_jobs.storage.lake import Lake

DAY, NEXT = "1998-03-01", "1998-03-02"
CATALOGUE = {"1": "Heat", "2": "Alien", "3": "Fargo", "4": "Jaws", "5": "Jaws"}  # 4 and 5 share a key


TEXT = "A drama for viewers who enjoy Heat, Alien, Fargo or Jaws and want more."


class FakeModel:
    """Always writes the text that is valid for u1 only."""

    def limit(self, limits):
        pass

    def generate(self, prompts):
        for place, _ in enumerate(prompts):
            yield place, Generation(TEXT, 100, 20, 1.0)


def no_model():
    raise AssertionError("a model was made although nothing is to be generated")


@pytest.fixture
def filled(lake, write_rows):
    """Two days. On the second, u1 and u2 each have one interaction more; u2 had none."""
    events = [("u1", "1", DAY), ("u1", "2", DAY), ("u1", "3", DAY), ("u1", "4", DAY), ("u1", "5", DAY)]
    events += [("u1", "2", NEXT), ("u2", "3", NEXT)]
    timed = [
        (user, item, datetime.fromisoformat(f"{day}T10:00:00").replace(tzinfo=UTC), number)
        for number, (user, item, day) in enumerate(events)
    ]
    for day in (DAY, NEXT):
        items = [(key, title, {"genres": "Drama"}) for key, title in CATALOGUE.items()]
        users = [("u1", {"age": "24"}), ("u2", {"age": "30"})]
        interactions = [row for row in timed if row[2].date().isoformat() == day]
        write_rows(lake, tables.ITEMS, items, day)
        write_rows(lake, tables.USERS, users, day)
        write_rows(lake, tables.INTERACTIONS, interactions, day)
    return lake


def describe_day(lake, day, num_items, num_users, make_model=FakeModel):
    describe_entities(lake, day, ITEM, read_item_facts(lake, day), caps=Caps(num_items), make_model=make_model)
    describe_entities(lake, day, USER, read_user_facts(lake, day), caps=Caps(num_users), make_model=make_model)


def key_counts(lake, day):
    return {each.entity: each.counts for each in forecast_day(lake, day, Speed())}


@pytest.mark.spark
def test_the_run_does_what_was_forecast(filled, settings_with):
    lake = Lake(filled.spark, settings_with(llm_budget=3))  # one item, two users
    assert key_counts(lake, DAY) == {"item": KeyCounts(5, 0, 0, 4, 1, 1), "user": KeyCounts(2, 0, 0, 2, 2, 2)}

    describe_day(lake, DAY, 1, 2)
    before = {path: path.stat().st_mtime_ns for path in lake.root.glob("**/*.parquet")}
    # u1's sixth interaction is a fifth more; u2's first one gives no reason to wait.
    assert key_counts(lake, NEXT) == {"item": KeyCounts(5, 1, 0, 3, 1, 1), "user": KeyCounts(2, 0, 0, 2, 2, 2)}
    patient = Lake(filled.spark, settings_with(llm_budget=3, redescribe_growth=0.5))
    assert key_counts(patient, NEXT)["user"] == KeyCounts(2, 0, 1, 1, 1, 1)
    assert key_counts(lake, DAY)["item"] == KeyCounts(5, 1, 0, 3, 0, 1), "the day has spent its budget"
    assert {path: path.stat().st_mtime_ns for path in lake.root.glob("**/*.parquet")} == before

    describe_day(patient, NEXT, 1, 2)
    paid = {
        entity: patient.read(table, NEXT).select("generation_key").distinct().count()
        for entity, table in (("item", tables.ITEM_GENERATION), ("user", tables.USER_GENERATION))
    }
    assert paid == {"item": 1, "user": 1}


@pytest.mark.spark
def test_a_day_that_was_not_ingested_says_so(lake):
    with pytest.raises(MissingPartitionError, match="items has no partition for 1998-03-01"):
        forecast_day(lake, DAY, Speed())


@pytest.fixture
def run(environment, monkeypatch, capsys):
    """The command in this process, on the temporary home; returns what it prints."""

    def run(*arguments, **settings):
        for name, value in {**environment, **settings}.items():
            monkeypatch.setenv(name, value)
        main(arguments)
        return capsys.readouterr().out

    return run


COMPANY = ("--items", "1200000", "--users", "100000")
PAID = {"GRASP_LLM_BUDGET": "4000000", "GRASP_LLM_INPUT_PRICE": "0.5", "GRASP_LLM_OUTPUT_PRICE": "1.5"}


def test_a_forecast_by_numbers_needs_no_data_and_no_spark(run, monkeypatch):
    monkeypatch.setattr("spark_jobs.commands.forecast.spark_session", no_model)
    speed = ("--seconds-per-answer", "2", "--parallelism", "64")
    found = json.loads(run(*COMPANY, *speed, "--new-share", "0.1", "--json", **PAID))

    assert (found["item"]["num_cache_hits"], found["item"]["num_new"], found["item"]["num_allowed"]) == (
        1_080_000,
        120_000,
        120_000,
    )
    assert found["user"]["num_new"] == 10_000
    assert found["item"]["rates"]["source"] == "estimate"
    assert found["item"]["today"]["hours"] == pytest.approx(120_000 * 2 * 2 / 64 / 3600)  # each with its repair
    tokens = found["item"]["today"]
    assert tokens["cost"] == pytest.approx(0.5e-6 * tokens["num_input_tokens"] + 1.5e-6 * tokens["num_output_tokens"])


def test_the_forecast_uses_the_caps_of_the_settings(run):
    found = json.loads(run(*COMPANY, "--json", GRASP_LLM_BUDGET="75"))
    assert (found["item"]["num_allowed"], found["user"]["num_allowed"]) == (37, 38)
    assert found["item"]["num_days"] == 32_433


def test_a_forecast_without_a_price_says_so(run):
    no_price = "no price set: GRASP_LLM_INPUT_PRICE, GRASP_LLM_OUTPUT_PRICE"

    assert no_price in run(*COMPANY).splitlines()
    assert no_price not in run(*COMPANY, **PAID)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give either --day, or --items and --users"),
        (("--day", DAY, "--items", "5"), "give either --day, or --items and --users"),
        (("--items", "5", "--new-share", "1.5"), "1.5 is not a share"),
        (("--items", "-5"), "-5 is not a number"),
        (("--items", "5", "--parallelism", "0"), "0 is not above 0"),
        (("--day", "yesterday"), "'yesterday' is not a day"),
        (("--items", "5", "--moments", "9"), "--moments and --active-users belong to --users"),
        (("--day", DAY, "--active-users", "9"), "--moments and --active-users belong to --users"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(run, capsys, arguments, complaint):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert complaint in capsys.readouterr().err


def test_a_wrong_setting_is_named(run):
    with pytest.raises(SystemExit, match="GRASP_LLM_BUDGET"):
        run(*COMPANY, GRASP_LLM_BUDGET="many")


def test_the_ledgers_means_are_used_if_it_holds_enough_keys(item_rows, run):
    item_rows.pay(DAY, *(item_rows.accepted(f"key {number}", 2 * number) for number in range(20)))
    text = run("--items", "1000", GRASP_LLM_BUDGET="75")
    assert (
        "items: means of 20 texts in the ledger: 1.00 calls per text, 0% repaired, 2.00 s per answer, 1.0 concurrently"
        in text
    )
    assert "today in total: 37 texts, 4,440 tokens" in text
    assert "key" not in text, "a reader counts texts; that equal facts share one is the ledger's business"


# --- recent moments


@pytest.mark.spark
def test_the_job_compares_what_was_forecast_and_the_setting_may_be_off(filled, settings_with, write_rows):
    lake = Lake(filled.spark, settings_with(moments=False))
    before = {path: path.stat().st_mtime_ns for path in lake.root.glob("**/*")}
    # u1 took five items on the first day and one on the next; u2's one is its first.
    assert count_day(lake, NEXT) == MomentCounts(num_moments=5, num_asking=2, num_items=5, width=384)
    assert {path: path.stat().st_mtime_ns for path in lake.root.glob("**/*")} == before

    write_rows(lake, tables.ITEM_EMBEDDING, [(key, [0.6, 0.8], "h", None) for key in CATALOGUE], NEXT)
    assert count_day(lake, NEXT).width == 2
    find_moments.main(lake, NEXT)
    assert sum(lake.num_rows(tables.MOMENTS, day) for day in (DAY, NEXT)) == 5
    assert lake.read(tables.USER_NEIGHBOUR_ITEMS, NEXT).count() == 2


def test_cpu_seconds_are_those_of_a_measured_block_times_all_comparisons(settings, settings_with):
    counts = MomentCounts(num_moments=300, num_asking=10_000, num_items=50, width=8)
    found = forecast_moments(settings, counts)
    assert (found.num_comparisons, found.num_measured, found.is_exact) == (3_000_000, 160 * 300, True)
    assert found.cpu_seconds == pytest.approx(found.measured_cpu_seconds * 3_000_000 / (160 * 300))

    many = MomentCounts(num_moments=3_000, num_asking=10_000, num_items=50, width=8)
    proposed = forecast_moments(settings_with(moment_exact_up_to=2_999), many)
    assert (proposed.num_comparisons, proposed.is_exact) == (10_000 * 1_000, False)
    assert proposed.num_measured == 160 * 1_000


def test_the_memory_for_moments_is_that_of_their_arrays(settings):
    counts = MomentCounts(num_moments=300, num_asking=1, num_items=50, width=8)
    vectors = centred(np.random.default_rng(0).standard_normal((50, 8), np.float32))
    history_QH = np.stack([np.random.default_rng(row).permutation(50)[:8] + 1 for row in range(300)])
    held = contexts(history_QH, vectors)
    bags = (held.bag_QN, held.bag_NQ)
    of_moments = held.text_QS.nbytes + sum(each.data.nbytes + each.indices.nbytes for each in bags)

    assert forecast_moments(settings, counts).memory_bytes == of_moments + 2 * vectors[1:].nbytes


def test_only_the_comparison_is_measured():
    times = iter([5.0, 7.5])
    counts = MomentCounts(num_moments=300, num_asking=2, num_items=50, width=8)
    assert measure_block(counts, VoteRule(), is_exact=True, clock=lambda: next(times)) == (600, 2.5)


@pytest.mark.parametrize("counts", [MomentCounts(0, 5, 5, 8), MomentCounts(5, 0, 5, 8), MomentCounts(0, 0, 0, 8)])
def test_where_there_is_nothing_to_compare_nothing_is_measured(settings, counts):
    found = forecast_moments(settings, counts)
    assert (found.num_comparisons, found.cpu_seconds) == (0, 0.0)


def test_a_company_s_moments_are_forecast_by_numbers(run):
    few = ("--items", "500", "--users", "400", "--moments", "300", "--active-users", "200")
    found = json.loads(run(*few, "--json", GRASP_MOMENTS="false", GRASP_MOMENT_DAYS="14"))["moments"]
    assert (found["num_moments"], found["num_asking"], found["num_comparisons"]) == (300, 200, 60_000)
    assert (found["is_on"], found["moment_days"], found["width"]) == (False, 14, 384)

    text = run(*few, GRASP_MOMENTS="false")
    assert "recent moments" in text
    assert "moments of 30 days" in text
    assert "GB of memory in each worker" in text
    assert "GB of memory in the driver" in run(*few, GRASP_MOMENT_EXACT_UP_TO="299")
    assert text.splitlines()[-1] == "switched off: GRASP_MOMENTS=false"
    assert "measured here: 48,000 comparisons of made-up moments, 384 numbers wide, took" in text

    everybody = json.loads(run("--items", "500", "--users", "400", "--json"))["moments"]
    assert (everybody["num_moments"], everybody["num_asking"]) == (400, 400)
    assert "moments" not in json.loads(run("--items", "500", "--json"))
