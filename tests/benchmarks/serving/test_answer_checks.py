"""Planted answers and phases: what counts as mixed, as untrue, as growth, and as a rate that holds."""

from dataclasses import replace

import pytest

from benchmarks.serving.answer_checks import (
    SETTLE_SECONDS,
    STEPS,
    TAKE_UP_SECONDS,
    Allowed,
    Phase,
    ReleasePeriod,
    SearchAnswer,
    is_of_one,
    is_true,
    is_true_search,
    labels,
    memory_growth,
    slowest_take_up,
)
from benchmarks.serving.histograms import bucket_counts, quantile
from benchmarks.serving.load import Answer, Load
from benchmarks.serving.rates import search_highest
from benchmarks.serving.soak import Observed, Watch, _answers

ANSWER = Answer(0, 100.0, 100.0, 100.1, 200, "rel-1", "", "", ("r1",))
INFINITY = float("inf")


def at(sent: float, **changed) -> Answer:
    return replace(ANSWER, due=sent, sent=sent, done=sent + 0.1, **changed)


# --- rates and stages


@pytest.mark.parametrize(("limit", "low", "high"), [(100, 90, 100), (340, 310, 340), (61, 55, 61), (2, 0, 0)])
def test_the_highest_rate_is_searched_up_or_down(limit, low, high):
    asked = []

    found = search_highest(lambda rate: asked.append(rate) or rate <= limit)

    assert low <= found <= high
    assert found == 0 or found in asked
    assert len(asked) <= 18


def test_quantiles_of_a_histogram_are_linear_within_a_bucket():
    buckets = {0.001: 50.0, 0.002: 90.0, 0.005: 100.0, INFINITY: 100.0}

    assert quantile(buckets, 0.25) == pytest.approx(0.0005)
    assert quantile(buckets, 0.5) == pytest.approx(0.001)
    assert quantile(buckets, 0.95) == pytest.approx(0.0035)
    assert quantile({0.001: 1.0, INFINITY: 100.0}, 0.99) == 0.001  # above the last bound nothing is known
    with pytest.raises(ValueError, match="empty histogram"):
        quantile({0.001: 0.0, INFINITY: 0.0}, 0.5)


def test_stages_are_read_from_prometheus_text():
    text = (
        "# TYPE grasp_stage_seconds histogram\n"
        'grasp_stage_seconds_bucket{stage="lookup",le="0.001"} 3.0\n'
        'grasp_stage_seconds_bucket{stage="lookup",le="+Inf"} 4.0\n'
        'grasp_stage_seconds_count{stage="lookup"} 4.0\n'
        'other_bucket{stage="lookup",le="0.001"} 9.0\n'
    )

    assert bucket_counts(text, "grasp_stage_seconds", "stage") == {"lookup": {0.001: 3.0, INFINITY: 4.0}}


# --- releases

HISTORY = [
    ReleasePeriod(1, "rel-1", begins=0.0, ends=110.0),
    ReleasePeriod(2, "rel-2", begins=105.0, ends=210.0),
    ReleasePeriod(1, "rel-1", begins=205.0),
]


@pytest.mark.parametrize(
    "answer",
    [
        at(50),
        at(106),  # the switch is under way
        at(106, release="rel-2", marks=("r2",)),
        at(110 + TAKE_UP_SECONDS - 1),  # a worker that has not looked yet
        at(300),
    ],
)
def test_an_answer_is_of_one_release_that_was_in_force(answer):
    assert is_of_one(answer, HISTORY)


@pytest.mark.parametrize(
    "answer",
    [
        at(50, marks=("r1", "r2")),
        at(50, marks=("r2",)),
        at(50, marks=("r1", "?")),
        at(50, marks=()),
        at(50, release="rel-2", marks=("r2",)),  # not yet
        at(110 + TAKE_UP_SECONDS + 1),  # not any more
        at(50, release="rel-9"),
    ],
)
def test_an_answer_that_mixes_or_is_out_of_its_time_shows(answer):
    assert not is_of_one(answer, HISTORY)


def test_the_slowest_take_up_is_from_the_end_of_a_switch_to_the_last_old_answer():
    answers = [at(109), at(112.5), at(111, release="rel-2"), at(213, release="rel-2"), at(214)]

    assert slowest_take_up(answers, HISTORY) == pytest.approx(3.0)
    assert slowest_take_up([], HISTORY) == 0.0


# --- labels

CALM = Allowed(frozenset({""}), frozenset({""}), frozenset({("milvus", "")}))
AWAY = Allowed(frozenset({"last_good"}), frozenset({"store_error"}), frozenset({("memory", "milvus_error")}))
PHASES = [Phase("calm", CALM, 0.0, 0.0), Phase("away", AWAY, 100.0, 101.0), Phase("back", CALM, 200.0, 205.0)]
BAD = {"fallback": "last_good", "store_problem": "store_error"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (at(50), True),
        (at(50, **BAD), False),
        (at(99.95, **BAD), True),  # answered after the store died
        (at(101 + SETTLE_SECONDS - 1), True),
        (at(101 + SETTLE_SECONDS + 1), False),  # says nothing of a store that is gone
        (at(150, **BAD), True),
        (at(150, fallback="last_good"), False),
        (at(203, **BAD), True),
        (at(205 + SETTLE_SECONDS + 1, **BAD), False),
        (at(50, release="rel-2"), False),
        (at(150, status=503), True),  # counted as a 5xx
    ],
)
def test_a_label_is_true_of_a_phase_that_the_answer_was_made_in(answer, expected):
    assert is_true(answer, PHASES, "rel-1", timeout_seconds=0.2) is expected


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_a_lookup_that_took_too_long_may_be_named_while_the_store_is_there(seconds):
    answer = replace(at(50), done=50 + seconds, fallback="last_good", store_problem="store_timeout")

    assert is_true(answer, PHASES, "rel-1", timeout_seconds=0.2) is (seconds > 0.2)


def test_a_search_names_where_it_was_searched():
    assert is_true_search(SearchAnswer(50, 51, 200, "milvus", ""), PHASES)
    assert not is_true_search(SearchAnswer(50, 51, 200, "memory", ""), PHASES)
    assert not is_true_search(SearchAnswer(150, 151, 200, "milvus", ""), PHASES)


def test_labels_are_counted_by_phase():
    answers = [at(-1), at(50), at(150, **BAD), at(150, status=500), at(250)]

    assert labels(answers, PHASES) == {
        "calm": {"none": 2},
        "away": {"last_good": 1, "status 500": 1},
        "back": {"none": 1},
    }


def test_the_steps_of_a_soak_are_in_order_and_end_calm():
    shares = [step.share for step in STEPS]

    assert shares == sorted(shares)
    assert (shares[0], STEPS[-1].fallbacks) == (0.0, frozenset({""}))


def test_a_soak_keeps_what_was_lost_what_was_untrue_and_who_was_searched():
    load = Load([at(50), at(50, **BAD), at(150, status=503)], num_due=3, num_socket_errors=0, seconds=300.0)
    watch = Watch(None, searches=True)  # no service: nothing is asked any more
    watch.searches = [
        SearchAnswer(50, 51, 200, "milvus", ""),
        SearchAnswer(150, 151, 200, "memory", "milvus_error"),
        SearchAnswer(250, 251, 200, "memory", "milvus_error"),
        SearchAnswer(260, 261, 503, "", ""),
    ]

    found = _answers(Observed(load, PHASES, {}, watch), "rel-1", timeout_seconds=0.2)

    assert {name: each for name, each in found.items() if name.startswith("num_")} == {
        "num_5xx": 2,
        "num_searches": 4,
        "num_searches_by_milvus": 1,
        "num_failed_searches": 1,
        "num_untrue": 2,
    }
    assert found["untrue"] == [["rel-1", "last_good", "store_error"]]
    assert found["untrue_searches"] == [["memory", "milvus_error"]]


# --- memory


def curve(*megabytes: float, pid: int = 7) -> list[tuple[float, dict[int, float]]]:
    """A sample every minute."""
    return [(60.0 * minute, {pid: each}) for minute, each in enumerate(megabytes)]


def test_growth_is_from_minute_five_to_the_end():
    with_a_peak = curve(100, 200, 300, 400, 450, *[500] * 10, 900, *[500] * 13, 510, 510)

    assert memory_growth(with_a_peak, seconds=1800) == pytest.approx(0.02)
    assert memory_growth(curve(*[500] * 30, 525, 550), seconds=1860) == pytest.approx(0.075)


def test_the_worst_worker_counts():
    samples = [(minute * 60.0, {1: 500.0, 2: 500.0 + minute}) for minute in range(31)]

    assert memory_growth(samples, seconds=1800) == pytest.approx(24.5 / 505)


def test_growth_is_unknown_when_a_worker_was_not_there_all_the_time():
    assert memory_growth([*curve(*[500] * 20), (1200.0, {8: 500.0})], seconds=1200) is None
    assert memory_growth([], seconds=1200) is None
