"""Batch files: whatever happens, the same prompts are submitted and paid once."""

import json

import pytest

from spark_jobs.batch_files import BatchError, BatchFileModel
from spark_jobs.openai_llm import Server

TEXTS = ["title: Heat", "title: Alien", "title: Fargo", "title: Jaws"]
KEY = "sk-very-secret"


def prompt(text):
    return [{"role": "user", "content": text}]


def model(server, folder, url=None, patience_seconds=5, max_requests=50_000, **changed):
    asked = Server(url or server.url, "test-model", 48, max_attempts=2, **changed)
    return BatchFileModel(asked, folder, 0.01, patience_seconds, max_requests)


def ask(model, texts=TEXTS):
    answers = dict(model.generate([prompt(text) for text in texts]))
    assert sorted(answers) == list(range(len(texts)))
    return [answers[place] for place in range(len(texts))]


def codes(generations):
    return [generation.error for generation in generations]


def test_every_prompt_gets_the_answer_to_itself(model_server, tmp_path):
    answers = ask(model(model_server, tmp_path))
    assert [answer.text.split(" is ")[0] for answer in answers] == ["Heat", "Alien", "Fargo", "Jaws"]
    assert [(answer.num_input_tokens, answer.num_output_tokens) for answer in answers] == [(100, 20)] * 4


def test_a_batch_that_takes_too_long_is_read_by_the_next_run(model_server, tmp_path):
    with pytest.raises(BatchError, match=r"batch-0 is still in_progress: run again"):
        ask(model(model_server, tmp_path, patience_seconds=0))
    [memory] = tmp_path.glob("*.json")
    assert json.loads(memory.read_text())["batch_id"] == "batch-0"
    assert codes(ask(model(model_server, tmp_path))) == [None] * 4
    seen = model_server.seen()
    assert seen["num_batches"] == 1
    assert set(seen["answers"].values()) == {1}


def test_a_batch_whose_id_got_lost_is_found_again(model_server, tmp_path):
    model_server.script(lose_batch=True)
    with pytest.raises(BatchError, match="connection"):
        ask(model(model_server, tmp_path))
    assert codes(ask(model(model_server, tmp_path))) == [None] * 4
    assert model_server.seen()["num_batches"] == 1


def test_other_prompts_are_another_batch(model_server, tmp_path):
    ask(model(model_server, tmp_path))
    ask(model(model_server, tmp_path), TEXTS[:2])
    assert model_server.seen()["num_batches"] == 2


def test_failures_have_their_codes(model_server, tmp_path):
    model_server.script(
        prompts={
            TEXTS[1]: [{"kind": "status", "status": 400}],
            TEXTS[2]: [{"kind": "status", "status": 500}],
            TEXTS[3]: [{"kind": "wrong_model"}],
        }
    )
    answers = ask(model(model_server, tmp_path))
    assert codes(answers) == [None, "rejected", "server_error", "wrong_model"]
    assert (answers[3].text, answers[3].num_input_tokens) == ("", 100)  # billed all the same


def test_what_came_before_a_batch_expired_is_kept(model_server, tmp_path):
    model_server.script(batch_end="expired")
    assert codes(ask(model(model_server, tmp_path))) == [None, None, "timeout", "timeout"]
    assert codes(ask(model(model_server, tmp_path))) == [None, None, "timeout", "timeout"]
    assert model_server.seen()["num_batches"] == 1


def test_a_batch_that_failed_altogether_is_submitted_again(model_server, tmp_path):
    model_server.script(batch_end="failed")
    assert codes(ask(model(model_server, tmp_path))) == ["rejected"] * 4
    model_server.script(batch_end="completed")
    assert codes(ask(model(model_server, tmp_path))) == [None] * 4
    assert model_server.seen()["num_batches"] == 2


def test_many_prompts_are_several_batches_submitted_before_the_first_is_waited_for(model_server, tmp_path):
    generations = model(model_server, tmp_path, max_requests=3).generate([prompt(text) for text in TEXTS])
    first = next(generations)
    assert model_server.seen()["num_batches"] == 2
    answers = dict([first, *generations])
    assert [answers[place].text.split(" is ")[0] for place in range(4)] == ["Heat", "Alien", "Fargo", "Jaws"]


def test_half_a_character_does_not_stop_the_others(model_server, tmp_path):
    assert codes(ask(model(model_server, tmp_path), ["\ud83d", "title: Heat"])) == [None, None]


def test_no_more_is_submitted_than_the_budget_allows(model_server, tmp_path):
    assert codes(ask(model(model_server, tmp_path, max_calls=3))) == [None, None, None, "out_of_budget"]
    assert codes(ask(model(model_server, tmp_path, max_calls=0))) == ["out_of_budget"] * 4
    assert model_server.num_requests() == 3


def test_a_server_that_is_not_there_says_so_without_the_key(model_server, tmp_path, monkeypatch):
    monkeypatch.setenv("GRASP_LLM_API_KEY", KEY)
    with pytest.raises(BatchError, match="connection") as error:
        ask(model(model_server, tmp_path, url="http://127.0.0.1:9/v1"))
    assert KEY not in str(error.getrepr(style="long", showlocals=True))
    assert list(tmp_path.iterdir()) == []
