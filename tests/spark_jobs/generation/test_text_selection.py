"""Running a day again gives the same texts, whatever was paid for since, except by batches of the day itself."""

import pytest

from spark_jobs.generation.description_kind import DescriptionKind
from spark_jobs.generation.prompts import ITEM, USER
from spark_jobs.generation.text_selection import description_rows, kept_descriptions, select_answers

pytestmark = pytest.mark.spark

VERSIONS = {"prompt_version": "p", "model_revision": "m"}
TODAY, NEW = "facts of today", "a text of later"


def kind_of(subject):
    return DescriptionKind(subject, "p", "m", 48, frozenset())


@pytest.fixture
def answers_of(lake):
    """`answers_of(subject, until=..., later=..., written=...)`: the answer that the day may use for the one entity.

    `until` and `later` are the ledger's answers: a text, a refusal with a leading `!`, or None.
    """

    def answers_of(subject, *, until=None, later=None, written=None):
        kind = kind_of(subject)
        inputs = lake.spark.createDataFrame(
            [("a", 12, "key", TODAY)], "entity_id string, activity bigint, generation_key string, input_hash string"
        )
        rows = None if written is None else [as_row(kind, written)]
        found = select_answers(
            inputs,
            answer_frame(lake, until),
            answer_frame(lake, later),
            rows and lake.spark.createDataFrame(rows, kind.table.ddl),
            kind,
        )
        return [row.llm_description or f"!{row.refusal_reason}" for row in found.collect()]

    return answers_of


def answer_frame(lake, said):
    rows = [] if said is None else [("key", None, said[1:]) if said.startswith("!") else ("key", said, None)]
    return lake.spark.createDataFrame(rows, "generation_key string, description string, refusal_reason string")


def as_row(kind, written):
    known = {kind.id: "a", "description": "a text", "description_hash": "h", "computed_at": None} | VERSIONS
    row = {"activity": None, "fallback_reason": None} | known | written
    return tuple(row[name] for name in kind.table.column_names)


FACTS = {"source": "facts", "fallback_reason": "budget", "input_hash": TODAY}
TEXT = {"source": "llm", "input_hash": TODAY}
EARLIER_TEXT = {"source": "llm", "input_hash": "facts of yesterday"}


@pytest.mark.parametrize("subject", [ITEM, USER])
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, [NEW]),  # a back-fill uses what is paid for
        (TEXT, [NEW]),
        (FACTS, []),
        ({**FACTS, "prompt_version": "of before"}, [NEW]),
        ({**FACTS, "input_hash": "facts of yesterday"}, [NEW]),  # the day itself has changed
    ],
)
def test_a_later_text_does_not_change_a_day_without_it(answers_of, subject, written, expected):
    assert answers_of(subject, later=NEW, written=written) == expected


def test_an_earlier_text_kept_by_a_written_day_stays(answers_of):
    assert answers_of(USER, later=NEW, written=EARLIER_TEXT) == []
    assert answers_of(ITEM, later=NEW, written=EARLIER_TEXT) == [NEW]  # an item's old text is of other facts


@pytest.mark.parametrize("answer", [NEW, "!loop"])
def test_a_batch_of_the_day_that_is_read_late_counts_as_if_it_had_come_in_time(answers_of, answer):
    assert answers_of(USER, until=answer, written={**FACTS, "fallback_reason": "pending"}) == [answer]


def test_a_later_refusal_does_not_replace_another_fallback_reason(answers_of):
    assert answers_of(ITEM, later="!loop", written=FACTS) == []
    assert answers_of(ITEM, later="!loop", written={**FACTS, "fallback_reason": "loop"}) == ["!loop"]


def test_a_later_refusal_is_not_confused_with_an_earlier_one_of_the_same_reason(answers_of):
    earlier, of_the_day = ({**FACTS, "fallback_reason": "loop", "activity": known} for known in (10, 12))
    assert answers_of(USER, later="!loop", written=earlier) == []
    assert answers_of(USER, later="!loop", written=of_the_day) == ["!loop"]


@pytest.mark.parametrize("written", [None, TEXT, {**FACTS, "fallback_reason": "loop"}])
def test_the_answer_of_the_day_comes_before_that_of_a_later_replay(answers_of, written):
    assert answers_of(ITEM, until="!loop", later=NEW, written=written) == ["!loop"]


def test_an_earlier_refusal_is_the_fallback_reason_when_nothing_else_happened(lake):
    kind = kind_of(USER)
    rows = [
        # id and key, withheld, answer of the day, error of the day
        ("nothing", False, None, None),
        ("accepted", False, "a text", None),
        ("refused", False, "!url", None),
        ("failed", False, None, "timeout"),
        ("hostile", True, None, None),
        ("never asked", False, None, None),
    ]
    ids = [row[0] for row in rows]
    inputs = lake.spark.createDataFrame(
        [(name, 12, name, TODAY, "facts", hostile) for name, hostile, _, _ in rows],
        "entity_id string, activity bigint, generation_key string, input_hash string, facts_description string, "
        "is_withheld boolean",
    )
    answers = lake.spark.createDataFrame(
        [(name, name, *((None, said[1:]) if said[0] == "!" else (said, None))) for name, _, said, _ in rows if said],
        "entity_id string, generation_key string, llm_description string, refusal_reason string",
    )
    errors = lake.spark.createDataFrame(
        [(name, error) for name, _, _, error in rows if error], "generation_key string, error string"
    )
    before = [as_row(kind, {**FACTS, "user_id": name, "fallback_reason": "loop", "activity": 10}) for name in ids]
    before[-1] = as_row(kind, {**FACTS, "user_id": "never asked"})
    kept = kept_descriptions(lake.spark.createDataFrame(before, kind.table.ddl), kind)

    found = description_rows(inputs, answers, errors, kept, kind).collect()

    assert {row.user_id: (row.fallback_reason, row.activity) for row in found} == {
        "nothing": ("loop", 10),
        "accepted": (None, 12),
        "refused": ("url", 12),
        "failed": ("timeout", None),
        "hostile": ("hostile_facts", None),
        "never asked": ("budget", None),
    }
