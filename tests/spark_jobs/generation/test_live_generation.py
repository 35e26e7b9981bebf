"""A task stores every answer as it arrives, and repairs a refused text once."""

import json

import pyarrow.parquet as pq
import pytest

from grasp import tables
from spark_jobs.generation.live_generation import (
    REPAIR_EVERY,
    GenerationTask,
    Validator,
    count_tasks,
    run_task,
)
from spark_jobs.generation.prompts import ITEM, item_input, prompt_messages
from spark_jobs.generation.repair import REMEDIES, is_repairable, repair_messages
from spark_jobs.models.account import Account, Prices
from spark_jobs.models.language_model import NOT_SENT, Generation
from spark_jobs.storage.shards import Shards, ShardWriter

GOOD = "{} is a film for viewers who enjoy the drama, and it goes well with other dramas."


class ScriptedModel:
    """Returns the scripted answers of each title in order; raises an answer that is an exception."""

    def __init__(self, answers):
        self.answers = {title: list(texts) for title, texts in answers.items()}
        self.asked = []

    def limit(self, account):
        pass

    def generate(self, prompts):
        for place, prompt in reversed(list(enumerate(prompts))):
            facts = next(message["content"] for message in reversed(prompt) if "<facts>" in message["content"])
            title = next(line for line in facts.splitlines() if line.startswith("title: ")).removeprefix("title: ")
            self.asked.append((title, len(prompt)))
            answer = self.answers[title].pop(0)
            if isinstance(answer, Exception):
                raise answer
            yield place, answer if isinstance(answer, Generation) else Generation(answer, 100, 20, 0.5)


def requests_for(*titles):
    inputs = [item_input({"title": title, "attributes": {"genres": "Drama"}}, ()) for title in titles]
    return [
        {"generation_key": f"key of {title}", "entity_id": title, "canonical": json.dumps(facts)}
        for title, facts in zip(titles, inputs, strict=True)
    ]


@pytest.fixture
def run(tmp_path):
    """`run(answers)`: the counts of one attempt, all rows of the task, and the model. A second call is a retry."""
    shards = Shards(tables.ITEM_GENERATION, tmp_path, "run")
    validator = Validator(ITEM, "item-1", "model-1", Prices(input=2.0, output=10.0), frozenset())

    def run(answers, max_repairs=1, titles=None):
        model, requests = ScriptedModel(answers), requests_for(*(titles or answers))
        task = GenerationTask(validator, shards, lambda: model, max_repairs, Account())
        with ShardWriter(shards, 0) as writer:
            counts = run_task(task, requests, writer)
        rows = [row for file in shards.files() for row in pq.read_table(file, partitioning=None).to_pylist()]
        return counts, rows, model

    return run


def test_every_answer_is_a_ledger_row_with_its_cost(run):
    counts, [row], _ = run({"Heat": [GOOD.format("Heat")]})

    assert counts == {"accepted": 1}
    assert row.keys() == set(tables.ITEM_GENERATION.column_names)
    assert (row["generation_key"], row["item_id"], row["description"]) == ("key of Heat", "Heat", GOOD.format("Heat"))
    assert (row["cost"], row["seconds"], row["num_attempts"]) == (pytest.approx((2 * 100 + 10 * 20) / 1e6), 0.5, 1)
    assert (row["refusal_reason"], row["error"], row["is_repair"]) == (None, None, False)
    assert row["generated_at"].tzinfo is not None


def test_answers_in_any_order_belong_to_their_request(run):
    _, rows, _ = run({title: [GOOD.format(title)] for title in ("Heat", "Fargo", "Jaws")})

    assert [(row["item_id"], row["description"]) for row in rows] == [
        (title, GOOD.format(title)) for title in ("Jaws", "Fargo", "Heat")
    ]


def test_a_refused_text_is_repaired_once_and_both_answers_are_stored(run):
    counts, rows, model = run({"Heat": ["Too short.", GOOD.format("Heat")], "Jaws": ["No.", "No.", "never asked"]})

    assert counts == {"accepted": 1, "too_short": 1}
    assert [(row["item_id"], row["is_repair"], row["refusal_reason"]) for row in rows] == [
        ("Jaws", False, "too_short"),
        ("Heat", False, "too_short"),
        ("Heat", True, None),
        ("Jaws", True, "too_short"),
    ]
    plain = model.asked[0][1]
    assert [length for _, length in model.asked] == [plain, plain, plain + 2, plain + 2]


def test_repairs_can_be_switched_off(run):
    counts, rows, _ = run({"Heat": ["Too short."]}, max_repairs=0)

    assert counts == {"too_short": 1}
    assert len(rows) == 1


def test_a_refusal_by_the_model_is_not_repaired(run):
    counts, rows, _ = run({"Heat": ["Sorry, it is not possible to describe this film for viewers."]})

    assert counts == {"refusal": 1}
    assert len(rows) == 1


def test_a_failed_call_is_a_row_without_a_refusal_reason(run):
    failed = Generation("", 0, 0, 30.0, num_attempts=5, error="timeout")
    counts, [row], _ = run({"Heat": [failed]})

    assert counts == {"timeout": 1}
    assert (row["error"], row["refusal_reason"], row["description"], row["num_attempts"]) == ("timeout", None, None, 5)


def test_a_request_that_was_not_sent_for_lack_of_budget_is_not_stored(run):
    counts, rows, _ = run({"Heat": [GOOD.format("Heat")], "Jaws": [NOT_SENT]})

    assert counts == {"accepted": 1, "out_of_budget": 1}
    assert [row["item_id"] for row in rows] == ["Heat"]


def test_the_refused_text_in_a_repair_prompt_holds_no_chat_tokens():
    [_, told, asked] = repair_messages([{"role": "user", "content": "facts"}], "<|im_end|> a text", "loop")

    assert (told["role"], asked["role"]) == ("assistant", "user")
    assert "<" not in told["content"]
    assert REMEDIES["loop"] in asked["content"]
    assert not is_repairable("instruction_in_facts")


def test_a_retried_task_continues_with_the_open_repairs(run):
    killed = {
        "Heat": ["Too short.", GOOD.format("Heat")],
        "Jaws": ["No.", MemoryError()],
        "Alien": [GOOD.format("Alien")],
    }
    with pytest.raises(MemoryError):
        run(killed)
    counts, rows, model = run({"Jaws": [GOOD.format("Jaws")]}, titles=list(killed))

    assert counts == {"accepted": 1}
    [(title, length)] = model.asked
    assert (title, length > len(prompt_messages(ITEM, item_input({"title": "Jaws"}, ())))) == ("Jaws", True)
    assert [(row["item_id"], row["is_repair"]) for row in rows if row["refusal_reason"] is None] == [
        ("Alien", False),
        ("Heat", True),
        ("Jaws", True),
    ]
    assert run({}, titles=list(killed))[0] == {}


def test_repairs_start_before_the_end_of_a_large_task(run):
    titles = [f"Film {number}" for number in range(REPAIR_EVERY + 1)]
    answers = {title: [GOOD.format(title)] for title in titles}
    counts, _, model = run(answers | {titles[0]: ["Too short.", GOOD.format(titles[0])]})

    assert counts == {"accepted": len(titles)}
    assert [title for title, _ in model.asked[-2:]] == [titles[0], titles[-1]]


def test_without_budget_for_a_repair_a_text_stays_refused(run):
    counts, rows, _ = run({"Heat": ["Too short.", NOT_SENT]})

    assert counts == {"too_short": 1}
    assert len(rows) == 1


def test_a_task_without_requests_loads_no_model(tmp_path):
    def no_model():
        raise AssertionError("a model was made")

    shards = Shards(tables.ITEM_GENERATION, tmp_path, "run")
    task = GenerationTask(Validator(ITEM, "item-1", "model-1", Prices(), frozenset()), shards, no_model, 1, Account())
    assert run_task(task, [], ShardWriter(shards, 0)) == {}


def test_a_task_stops_when_nothing_is_left_to_spend(run):
    titles = [f"Film {number}" for number in range(REPAIR_EVERY * 2)]
    answers = {title: [NOT_SENT] for title in titles}
    counts, rows, model = run(answers)

    assert (counts, rows, len(model.asked)) == ({"out_of_budget": REPAIR_EVERY}, [], REPAIR_EVERY)


def test_a_failure_is_counted_with_the_vendors_code(run):
    failed = Generation("", 0, 0, 0.1, error="rejected", failure="rejected (status 400, unsupported_parameter)")
    counts, [row], _ = run({"Heat": [failed]})

    assert counts == {"rejected (status 400, unsupported_parameter)": 1}
    assert row["error"] == "rejected"


@pytest.mark.parametrize(("num_requests", "num_tasks"), [(1, 1), (8, 1), (9, 2), (200, 4), (8192, 4), (8193, 8)])
def test_few_requests_load_the_model_once_and_many_keep_every_worker_busy(num_requests, num_tasks):
    assert count_tasks(num_requests, num_workers=4) == num_tasks
