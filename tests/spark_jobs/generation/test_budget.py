"""Urgency and caps: which requests come first, and how many are allowed."""

import math
from datetime import UTC, datetime

import pytest
from pyspark.sql import functions as F

from spark_jobs.generation.budget import (
    BYTES_PER_TOKEN,
    Caps,
    UsageEstimate,
    estimated_bytes,
    max_tokens_of,
    most_urgent,
    urgency,
)
from spark_jobs.generation.prompts import MAX_FACTS_BYTES
from spark_jobs.models.account import SpendingLimits, Usage

NOW = datetime(1998, 3, 29, tzinfo=UTC)


def test_a_days_caps_are_halved_between_items_and_users(settings_with):
    settings = settings_with(llm_budget=75, llm_max_tokens=1001, llm_max_cost=3.0, llm_output_price=0.4)

    assert Caps.of(settings, "item") == Caps(37, 500, 1.5)
    assert Caps.of(settings, "user") == Caps(38, 501, 1.5)
    assert Caps.of(settings_with(llm_budget=0), "item") == Caps(0)
    assert Caps.of(settings_with(llm_budget=5, llm_max_calls=9), "user") == Caps(3, num_calls=5)


def test_the_model_keeps_to_the_same_caps():
    assert Caps(9, num_tokens=500, cost=0.004, num_calls=7).limits() == SpendingLimits(7, 500, 0.004)
    assert Caps(9).limits() == SpendingLimits()


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        (Caps(1000), 1000),
        (Caps(1000, num_calls=7), 7),
        (Caps(1000, num_tokens=4000), 40),  # no prompt of 1600 bytes has fewer than 100 tokens
        (Caps(1000, cost=0.05), 50),
        (Caps(1000, num_tokens=0), 0),
    ],
)
def test_no_more_requests_are_staged_than_could_fit(caps, expected):
    estimate = UsageEstimate(prompt_bytes=1600, max_new_tokens=50, input_price=10.0, output_price=20.0)
    assert caps.most_keys(estimate) == expected


def test_usage_is_subtracted_from_the_caps_down_to_zero():
    assert Caps(10, 1000, 2.0).left(Usage(4, 9, 300, 0.5)) == Caps(6, 700, 1.5)
    assert Caps(10, 1000, 2.0).left(Usage(40, 90, 3000, 5.0)) == Caps(0, 0, 0.0)
    assert Caps(10).left(Usage(4, 9, 300, 0.5)) == Caps(6)


def test_caps_allow_usage_that_exceeds_none_of_them():
    caps = Caps(2, num_tokens=300, cost=0.5)

    assert caps.allow(Usage(1, 9, 200, 0.25) + Usage(1, 9, 100, 0.25))
    assert not caps.allow(Usage(3))
    assert not caps.allow(Usage(num_tokens=301))
    assert not caps.allow(Usage(cost=0.51))
    assert not Caps(2, num_calls=1).allow(Usage(num_calls=2))


def frame(spark, rows):
    return spark.createDataFrame(rows, "generation_key string, entity_id string, canonical string, urgency double")


@pytest.mark.spark
def test_the_most_urgent_come_first_and_equal_facts_are_requested_once(lake):
    wanted = frame(
        lake.spark,
        [
            ("k1", "a", "x", 1.0),
            ("k2", "b", "x", 9.0),
            ("k1", "c", "x", 5.0),
            ("k3", "d", "x", 5.0),
            ("k4", "e", "x", 0.0),
        ],
    )
    found = most_urgent(wanted, 3).orderBy("number").collect()

    assert [(row.number, row.generation_key, row.entity_id) for row in found] == [
        (0, "k2", "b"),
        (1, "k1", "c"),
        (2, "k3", "d"),
    ]


@pytest.mark.spark
def test_every_byte_that_is_not_ascii_may_be_a_token(lake):
    texts = {"x" * 300: 100, "é" * 30: 60, "寿司x" * 10: 64, "x" * 299 + "😀": 104, "寿" * 2000: MAX_FACTS_BYTES}
    frame = lake.spark.createDataFrame([(text,) for text in texts], "canonical string")
    counted = frame.select("canonical", estimated_bytes(F.col("canonical")).alias("num")).collect()
    assert {row.canonical: math.ceil(row.num / BYTES_PER_TOKEN) for row in counted} == texts
    assert [max_tokens_of(text) for text in texts][:4] == list(texts.values())[:4]
    assert max_tokens_of("\ud83d") == 3  # half a character


@pytest.mark.spark
def test_a_recent_text_lowers_the_urgency(lake):
    rows = [("new", 4.0, None), ("old", 4.0, "1998-01-01"), ("lately", 4.0, "1998-03-22"), ("today", 4.0, "1998-03-29")]
    found = lake.spark.createDataFrame(rows, "name string, activity double, at string").select(
        "name", urgency(F.col("activity"), F.to_timestamp("at"), NOW).alias("urgency")
    )

    assert {row.name: row.urgency for row in found.collect()} == {"new": 4, "old": 4, "lately": 1, "today": 0}
