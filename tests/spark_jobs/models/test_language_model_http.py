"""A server's faults cost time, never a prompt, and no answer is paid for twice."""

import logging
import pickle
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import pytest
from tenacity import RetryCallState

from spark_jobs.models.account import Account, Prices, SpendingLimits
from spark_jobs.models.chat_completions import Answer, RequestForm
from spark_jobs.models.language_model_http import (
    MESSAGE_TOKENS,
    LanguageModelServer,
    OpenAIModel,
    PromptTokens,
    ServerError,
    load_server_model,
    retrying,
)

KEY = "sk-very-secret"
TOO_MANY = {"kind": "status", "status": 429}
BROKEN = {"kind": "status", "status": 500}
TRANSIENT = {
    "429": TOO_MANY,
    "429 with a wait": {**TOO_MANY, "retry_after": "0.05"},
    "408": {"kind": "status", "status": 408},
    "409": {"kind": "status", "status": 409},
    "500": BROKEN,
    "503": {"kind": "status", "status": 503},
    "truncated": {"kind": "truncated"},
    "cut": {"kind": "cut"},
    "reset": {"kind": "reset"},
    "empty": {"kind": "empty"},
    "hang": {"kind": "hang"},
    "trickle": {"kind": "trickle", "every": 0.05},
}
CODES = {
    "429": "rate_limited",
    "429 with a wait": "rate_limited",
    "408": "timeout",
    "409": "server_error",
    "500": "server_error",
    "503": "server_error",
    "truncated": "truncated",
    "cut": "connection",
    "reset": "connection",
    "empty": "empty",
    "hang": "timeout",
    "trickle": "timeout",
}


def prompt(text):
    return [{"role": "system", "content": "Describe."}, {"role": "user", "content": text}]


def quick(server, **changed):
    """A server configuration with short waits."""
    form = RequestForm("test-model", 48, structured=changed.pop("structured", False))
    values = {
        "concurrency": 64,
        "timeout_seconds": 10,
        "backoff_seconds": 0.01,
        "max_backoff_seconds": 0.05,
        "max_failures_in_a_row": 1000,
    }
    return LanguageModelServer(server.url, form, **(values | changed))


def ask(server, texts, account=None, **changed):
    """The generations in the order of the texts."""
    with OpenAIModel(quick(server, **changed)) as model:
        if account:
            model.limit(account)
        answers = dict(model.generate([prompt(text) for text in texts]))
    assert sorted(answers) == list(range(len(texts)))
    return [answers[place] for place in range(len(texts))]


@pytest.fixture
def account(tmp_path):
    """`account(num_calls=3)`: a new account with these limits."""

    def account(prices=None, **limits):
        folder = tmp_path / f"account-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return Account(SpendingLimits(**limits), prices or Prices(), folder)

    return account


def numbered(count):
    return [f"title: Film {number}" for number in range(count)]


def codes(generations):
    return [generation.error for generation in generations]


def test_an_answer_has_text_tokens_and_latency(model_server):
    model_server.script(default={"kind": "answer", "seconds": 0.1, "usage": [123, 17]})
    [answer] = ask(model_server, ["title: Heat"])
    assert answer.text.startswith("Heat is a film")
    assert (answer.num_input_tokens, answer.num_output_tokens) == (123, 17)
    assert (answer.num_attempts, answer.error) == (1, None)
    assert 0.1 <= answer.seconds < 1


def test_decoding_is_greedy_seeded_and_bounded(model_server):
    ask(model_server, ["title: Heat"])
    body = model_server.seen()["last"]["body"]
    assert body.pop("messages") == prompt("title: Heat")
    assert body == {"model": "test-model", "temperature": 0, "seed": 0, "max_tokens": 48}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_transient_fault_is_retried(model_server, fault):
    model_server.script(prompts={"title: Heat": [TRANSIENT[fault]]})
    [answer] = ask(model_server, ["title: Heat"], timeout_seconds=0.5 if CODES[fault] == "timeout" else 10)
    assert (answer.error, answer.num_attempts) == (None, 2)
    assert answer.text.startswith("Heat is a film")
    assert model_server.seen()["answers"]["title: Heat"] == 1


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_permanent_fault_gives_its_error_code_after_the_last_attempt(model_server, fault):
    model_server.script(default={**TRANSIENT[fault], "repeat": True})
    seconds = 0.2 if CODES[fault] == "timeout" else 10
    [answer] = ask(model_server, ["title: Heat"], max_attempts=2, timeout_seconds=seconds)
    assert (answer.text, answer.error, answer.num_attempts) == ("", CODES[fault], 2)
    assert model_server.num_requests() == 2


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ({"kind": "status", "status": 400}, "rejected_prompt"),
        ({"kind": "status", "status": 400, "code": "unsupported_parameter"}, "rejected"),
        ({"kind": "status", "status": 400, "code": "content_filter"}, "content_filter"),
        ({"kind": "empty", "finish": "length"}, "cut"),
        ({"kind": "empty", "finish": "content_filter"}, "content_filter"),
        ({"kind": "status", "status": 401}, "rejected"),
        ({"kind": "status", "status": 403}, "rejected"),
        ({"kind": "status", "status": 404}, "wrong_model"),  # the message names the model
        ({"kind": "status", "status": 308}, "rejected"),
        ({**TOO_MANY, "code": "insufficient_quota"}, "rejected"),
        ({"kind": "wrong_model"}, "wrong_model"),
    ],
)
def test_errors_that_are_not_transient_are_not_retried(model_server, behaviour, code):
    model_server.script(default=behaviour)
    [answer] = ask(model_server, ["title: Heat"])
    assert (answer.text, answer.error, answer.num_attempts) == ("", code, 1)
    assert model_server.num_requests() == 1


def test_an_untrusted_certificate_is_refused_and_not_retried(tls_model_server):
    [answer] = ask(tls_model_server, ["title: Heat"])
    assert (answer.text, answer.error, answer.num_attempts) == ("", "certificate", 1)


def test_a_connection_closed_during_the_handshake_is_retried(model_server):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up():
            for _ in range(2):
                listening.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/v1"
        with OpenAIModel(replace(quick(model_server), url=url, max_attempts=2)) as model:
            [(_, answer)] = model.generate([prompt("title: Heat")])
    assert (answer.error, answer.num_attempts) == ("connection", 2)


def test_a_refused_connection_is_retried(model_server):
    with OpenAIModel(replace(quick(model_server), url="http://127.0.0.1:9/v1", max_attempts=3)) as model:
        [(_, answer)] = model.generate([prompt("title: Heat")])
    assert (answer.error, answer.num_attempts) == ("connection", 3)


def test_refusals_and_inventions_are_returned_as_texts(model_server):
    model_server.script(prompts={"a": [{"kind": "refusal"}], "b": [{"kind": "ungrounded"}]})
    refusal, invention = ask(model_server, ["a", "b"])
    assert refusal.text.startswith("Sorry")
    assert "Zanzibar" in invention.text


def test_billed_tokens_of_failed_attempts_are_counted(model_server):
    billed = [{"kind": "empty", "usage": [100, 1]}, {**BROKEN, "usage": [10, 0]}, BROKEN]
    model_server.script(prompts={"a": [*billed, {"kind": "answer", "usage": [100, 20]}]})
    model_server.script(default={"kind": "wrong_model", "usage": [7, 3]})
    answer, wrong = ask(model_server, ["a", "b"])
    assert (answer.num_input_tokens, answer.num_output_tokens, answer.num_attempts) == (210, 21, 4)
    assert (wrong.num_input_tokens, wrong.num_output_tokens) == (7, 3)


def waits(model_server):
    """Seconds between the first and the second request of each prompt."""
    return [times[1] - times[0] for times in model_server.seen()["times"].values() if len(times) > 1]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(model_server, as_date):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # has whole seconds only
    model_server.script(prompts={"a": [{**TOO_MANY, "retry_after": date if as_date else "0.7"}]})
    [answer] = ask(model_server, ["a"])
    [wait] = waits(model_server)
    assert answer.error is None
    assert 0.7 <= wait < 4


def test_retry_after_is_capped(model_server):
    model_server.script(prompts={"a": [{**TOO_MANY, "retry_after": "3600"}]})
    [answer] = ask(model_server, ["a"], max_retry_after_seconds=0.2)
    [wait] = waits(model_server)
    assert answer.error is None
    assert 0.2 <= wait < 0.6


def test_retries_of_concurrent_failures_are_spread_by_jitter(model_server):
    model_server.script(numbers=[BROKEN] * 40)
    ask(model_server, numbered(40), backoff_seconds=0.5, max_backoff_seconds=0.5)
    spread = sorted(waits(model_server))
    assert spread[0] < 0.25  # full jitter: down to nothing,
    assert 0.35 < spread[-1] < 1.5  # up to the backoff
    assert spread[30] - spread[10] > 0.1


def test_backoff_doubles_up_to_its_limit_and_is_added_to_retry_after(model_server):
    rules = retrying(quick(model_server, backoff_seconds=1, max_backoff_seconds=3, max_retry_after_seconds=50))

    def longest_wait(attempt, retry_after=None):
        state = RetryCallState(rules, None, (), {})
        state.attempt_number = attempt
        state.set_result(Answer(error="rate_limited", retry_after_seconds=retry_after))
        return max(rules.wait(state) for _ in range(500))

    assert 0.9 < longest_wait(1) <= 1
    assert 1.8 < longest_wait(2) <= 2
    assert 2.7 < longest_wait(3) <= 3
    assert 2.7 < longest_wait(9) <= 3
    assert 20.9 < longest_wait(1, retry_after=20) <= 21
    assert 50.9 < longest_wait(1, retry_after=3600) <= 51


def test_results_arrive_as_they_finish(model_server):
    model_server.script(prompts={"slow": [{"kind": "answer", "seconds": 0.3}]})
    with OpenAIModel(quick(model_server)) as model:
        started = time.monotonic()
        generations = model.generate([prompt("slow"), prompt("fast")])
        assert next(generations)[0] == 1
        assert time.monotonic() - started < 0.3
        assert next(generations)[0] == 0
        assert list(generations) == []


def test_answers_arrive_while_the_caller_is_busy(model_server):
    model_server.script(default={"kind": "answer", "seconds": 0.1})
    with OpenAIModel(quick(model_server, concurrency=4, timeout_seconds=0.8)) as model:
        generations = model.generate([prompt(text) for text in numbered(8)])
        first = next(generations)
        time.sleep(1)  # longer than the timeout
        assert model_server.num_requests() == 8
        answers = [first, *generations]
    assert codes(answer for _, answer in answers) == [None] * 8


def test_closing_the_iterator_cancels_the_rest(model_server):
    model_server.script(default={"kind": "answer", "seconds": 0.05})
    with OpenAIModel(quick(model_server, concurrency=2)) as model:
        generations = model.generate([prompt(text) for text in numbered(50)])
        next(generations)
        generations.close()
        time.sleep(0.2)
        assert model_server.num_requests() <= 6
        [(_, again)] = model.generate([prompt("another")])
    assert again.error is None


def test_no_more_requests_at_once_than_allowed(model_server):
    model_server.script(default={"kind": "answer", "seconds": 0.02})
    ask(model_server, numbered(30), concurrency=5)
    assert model_server.seen()["most_at_once"] == 5


def test_no_prompts_send_no_request(model_server):
    assert ask(model_server, []) == []
    assert model_server.num_requests() == 0


def test_a_lone_surrogate_does_not_stop_other_prompts(model_server):
    answers = ask(model_server, ["\ud83d", "title: Heat"])
    assert codes(answers) == [None, None]


@pytest.mark.parametrize("max_calls", [0, 1, 50])
def test_the_budget_of_calls_is_never_exceeded(model_server, account, max_calls):
    model_server.script(numbers=[BROKEN, TOO_MANY] * 20, default={"kind": "answer", "seconds": 0.01})
    answers = ask(model_server, numbered(100), account(num_calls=max_calls))
    assert (
        model_server.num_requests()
        == sum(answer.num_attempts for answer in answers if answer.num_attempts)
        == max_calls
    )
    never_sent = [answer for answer in answers if answer.error == "out_of_budget"]
    assert len(never_sent) >= 100 - max_calls
    assert all(answer.num_attempts == 0 for answer in never_sent)
    assert set(codes(answers)) <= {None, "out_of_budget", "server_error", "rate_limited"}


@pytest.mark.parametrize(
    ("limits", "prices"),
    [({"num_tokens": 30_000}, Prices()), ({"cost": 0.3}, Prices(input=10, output=10)), ({"num_calls": 300}, Prices())],
)
def test_a_cap_is_used_to_95_percent_and_never_exceeded(model_server, account, limits, prices):
    model_server.script(default={"kind": "answer", "seconds": 0.01, "usage": [80, 20]})
    answers = ask(model_server, numbered(400), account(prices, **limits))
    assert 285 <= codes(answers).count(None) <= 300
    assert set(codes(answers)) == {None, "out_of_budget"}
    assert model_server.num_requests() == codes(answers).count(None)


def test_a_cost_cap_counts_prompts_and_answers_by_their_own_prices(model_server, account):
    model_server.script(default={"kind": "answer", "usage": [90, 20]})
    answers = ask(model_server, numbered(100), account(Prices(input=1, output=10), cost=0.0145))  # 0.00029 each
    assert 48 <= codes(answers).count(None) <= 50


def test_concurrent_models_draw_from_one_account(model_server, account):
    shared = account(num_tokens=8000)
    model_server.script(default={"kind": "answer", "seconds": 0.01, "usage": [80, 20]})
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(ask, model_server, [f"title: {part}-{n}" for n in range(40)], shared) for part in range(4)]
    assert 76 <= sum(codes(each.result()).count(None) for each in asked) <= 80


def test_setting_limits_starts_with_a_new_account(model_server, account):
    with OpenAIModel(quick(model_server)) as model:
        for number, calls in enumerate((3, 2), start=1):
            model.limit(account(num_calls=calls))
            answers = dict(model.generate([prompt(f"{number}-{each}") for each in range(9)]))
            assert sum(answer.error is None for answer in answers.values()) == calls
    assert model_server.num_requests() == 5


def test_a_prompts_tokens_are_bounded_by_those_of_an_earlier_prompt():
    tokens = PromptTokens()
    template = [{"role": "system", "content": "x" * 2000}, {"role": "user", "content": "Go."}]
    first, second = [*template, {"role": "user", "content": "Heat"}], [*template, {"role": "user", "content": "é" * 10}]
    assert tokens.most(first, 3000) == 3000
    tokens.count(first, 500)
    assert tokens.most(first, 3000) == 500
    assert tokens.most(second, 3000) == 500 + 20 + MESSAGE_TOKENS
    repair = [*first, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Again."}]
    assert tokens.most(repair, 3000) == 500 + 9 + 2 * MESSAGE_TOKENS
    tokens.count(second, 490)
    tokens.count(first, 0)  # a server that counts nothing
    assert tokens.most(second, 3000) == 490
    assert tokens.most([{"role": "user", "content": "other"}], 80) == 80


def test_a_prompt_stopped_by_the_budget_reports_its_earlier_attempts(model_server, account):
    model_server.script(default={**BROKEN, "usage": [10, 0], "repeat": True})
    [answer] = ask(model_server, ["a"], account(num_calls=2), max_attempts=5)
    assert (answer.error, answer.num_attempts, answer.num_input_tokens) == ("server_error", 2, 20)


@pytest.mark.timeout(60)  # a count of calls under way that is wrong lets the next one wait for ever
def test_a_late_cancellation_does_not_touch_the_next_budget(model_server, account):
    model_server.script(default={"kind": "answer", "seconds": 0.3})
    with OpenAIModel(quick(model_server, concurrency=2)) as model:
        generations = model.generate([prompt(text) for text in ("a", "b", "c")])
        next(generations)
        model.limit(account(num_tokens=1))  # b or c is under way, as one that has not heard yet that it is called off
        generations.close()
        time.sleep(0.2)
        [(_, answer)] = model.generate([prompt("another")])
    assert (answer.error, answer.num_attempts) == ("out_of_budget", 0)


def test_a_missing_answer_counts_as_billed(model_server, account):
    model_server.script(default={"kind": "hang"})
    changed = {"concurrency": 1, "max_attempts": 1, "timeout_seconds": 0.1}
    first, second = ask(model_server, ["a", "b"], account(num_tokens=400), **changed)
    assert (first.error, second.error) == ("timeout", "out_of_budget")
    assert 0 < first.num_input_tokens <= 400
    assert (first.num_output_tokens, second.num_input_tokens) == (48, 0)


def moments(model_server):
    """When each request came, in order."""
    return sorted(moment for times in model_server.seen()["times"].values() for moment in times)


def test_requests_per_minute_are_limited(model_server):
    started = time.monotonic()
    ask(model_server, numbered(100), requests_per_minute=60 * 50)
    came = moments(model_server)
    assert came[49] - came[0] < 0.9  # one second's worth at once,
    # the others at fifty a second; from the start, as a first request that connects late is no sign of haste
    assert 0.9 < came[99] - started < 3


def test_tokens_per_minute_are_limited_by_reported_usage(model_server):
    model_server.script(default={"kind": "answer", "usage": [400, 100]})
    ask(model_server, numbered(8), concurrency=1, tokens_per_minute=60 * 2000)
    came = moments(model_server)
    assert 0.6 < came[-1] - came[0] < 3  # seven answers before the last: 3500 tokens, of which 2000 at once


def test_the_circuit_breaker_opens_waits_and_closes(model_server, capsys):
    model_server.script(numbers=[BROKEN] * 12)
    answers = ask(
        model_server,
        numbered(40),
        concurrency=8,
        max_failures_in_a_row=8,
        circuit_pause_seconds=0.6,
        circuit_patience_seconds=20,
    )
    assert codes(answers) == [None] * 40
    # One request a pause while it fails; on a busy machine one of the eight may ask again before the last has failed.
    assert all(later - earlier > 0.3 for earlier, later in pairwise(moments(model_server)[9:13]))
    said = capsys.readouterr().out
    assert "failed 8 times in a row (server_error)" in said
    assert "answers again" in said


def test_a_dead_server_is_waited_for_once_not_once_per_prompt(model_server):
    model_server.script(default={**BROKEN, "repeat": True})
    started = time.monotonic()
    answers = ask(
        model_server,
        numbered(300),
        concurrency=8,
        max_failures_in_a_row=8,
        circuit_pause_seconds=0.1,
        circuit_patience_seconds=0.5,
    )
    assert time.monotonic() - started < 2
    assert model_server.num_requests() < 30
    assert codes(answers).count("circuit_open") > 280
    assert all(answer.text == "" for answer in answers)


def test_a_server_with_wrong_settings_is_not_waited_for(model_server, capsys):
    model_server.script(default={"kind": "wrong_model", "repeat": True})
    started = time.monotonic()
    answers = ask(model_server, numbered(300), concurrency=4, max_failures_in_a_row=5)
    assert time.monotonic() - started < 5
    assert model_server.num_requests() <= 12
    assert codes(answers).count("circuit_open") >= 288
    assert sum(answer.num_input_tokens for answer in answers) == 100 * model_server.num_requests()
    assert (
        "(wrong_model (asked for test-model, answered by another-model)): asking it no more" in capsys.readouterr().out
    )


def test_a_run_asks_a_server_that_failed_in_the_last_run(model_server, account):
    with OpenAIModel(quick(model_server, concurrency=1, max_failures_in_a_row=2)) as model:
        run = account(num_calls=99)
        for start_of_a_task in (run, run):
            model.limit(start_of_a_task)
            model_server.script(default={"kind": "wrong_model", "repeat": True})
            list(model.generate([prompt(text) for text in numbered(9)]))
        assert model_server.num_requests() == 2
        model.limit(account(num_calls=99))
        model_server.script(default={"kind": "answer"})
        [(_, answer)] = model.generate([prompt("title: Heat")])
    assert answer.error is None


def test_parameters_are_settings(model_server, settings_with):
    settings = settings_with(
        llm_url=model_server.url,
        llm_model="test-model",
        llm_tokens_parameter="max_completion_tokens",
        llm_parameters='{"reasoning_effort": "low"}',
    )
    with OpenAIModel(LanguageModelServer.of(settings, num_workers=1)) as model:
        list(model.generate([prompt("title: Heat")]))
    body = model_server.seen()["last"]["body"]
    assert body.pop("messages") == prompt("title: Heat")
    assert body == {"model": "test-model", "max_completion_tokens": 48, "reasoning_effort": "low"}


def test_the_vendors_code_is_part_of_the_failure(model_server, monkeypatch):
    monkeypatch.setenv("GRASP_LLM_API_KEY", KEY)
    model_server.script(
        default={"kind": "status", "status": 400, "code": "unsupported_parameter", "param": "max_tokens"}
    )
    [answer] = ask(model_server, ["a"])
    assert answer.failure == "rejected (status 400, unsupported_parameter, max_tokens)"
    model_server.script(default={"kind": "status", "status": 400, "code": f"bad {KEY}"})
    [answer] = ask(model_server, ["a"])
    assert answer.failure == "rejected_prompt (status 400)"


def test_a_call_cancelled_before_sending_is_returned_to_the_budget(model_server, account):
    model_server.script(default={**BROKEN, "repeat": True})
    changed = {"max_failures_in_a_row": 2, "circuit_pause_seconds": 0.3, "circuit_patience_seconds": 20}
    with OpenAIModel(quick(model_server, concurrency=1, max_attempts=1, **changed)) as model:
        model.limit(account(num_calls=3))
        generations = model.generate([prompt(text) for text in numbered(5)])
        assert [next(generations)[1].error for _ in range(2)] == ["server_error", "server_error"]
        time.sleep(0.1)
        generations.close()  # the third has the last call and waits for the server
        model_server.script(default={"kind": "answer"})
        time.sleep(0.1)
        [(_, again)] = model.generate([prompt("title: Heat")])
    assert again.error is None


def test_a_rejected_prompt_does_not_open_the_circuit_breaker(model_server):
    model_server.script(numbers=[{"kind": "status", "status": 400}] * 20)
    answers = ask(model_server, numbered(30), concurrency=1, max_failures_in_a_row=3, circuit_patience_seconds=0.1)
    assert codes(answers) == ["rejected_prompt"] * 20 + [None] * 10


def test_structured_answers_are_requested_and_unpacked(model_server):
    model_server.script(
        prompts={
            "cut": [{"kind": "answer", "raw": '{"description": "half a', "finish": "length"}],
            "broken": [{"kind": "answer", "raw": '{"description": "half a'}],
            "plain": [{"kind": "answer", "raw": "A server that knows no formats."}],
            "other": [{"kind": "answer", "raw": '{"title": 1}', "repeat": True}],
        }
    )
    fine, cut, broken, plain, other = ask(
        model_server, ["title: Heat", "cut", "broken", "plain", "other"], structured=True, max_attempts=2
    )
    assert fine.text.startswith("Heat is a film")
    schema = model_server.seen()["last"]["body"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"description": {"type": "string"}}
    assert (cut.error, cut.num_attempts) == ("cut", 1)  # greedy decoding cuts it again
    assert (broken.error, broken.num_attempts) == (None, 2)
    assert plain.text == "A server that knows no formats."
    assert other.error == "empty"


def test_the_key_is_sent_to_the_server_only(model_server, tls_model_server, monkeypatch, caplog, capsys):
    monkeypatch.setenv("GRASP_LLM_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("OPENAI_LOG", "debug")
    caplog.set_level(logging.DEBUG)
    faults = [{"kind": "status", "status": 401}, BROKEN, {"kind": "reset"}, {"kind": "wrong_model"}]
    model_server.script(numbers=faults)
    answers = [*ask(model_server, numbered(6)), *ask(tls_model_server, ["a"])]
    assert model_server.seen()["last"]["headers"]["authorization"] == f"Bearer {KEY}"
    with OpenAIModel(quick(model_server)) as model:
        shown = [repr(model), str(vars(model)), repr(answers), repr(quick(model_server)), *capsys.readouterr()]
    assert caplog.records
    assert KEY not in caplog.text
    assert not any(KEY in text for text in shown)
    assert KEY.encode() not in pickle.dumps(quick(model_server))


def test_openai_api_key_is_never_sent(model_server, monkeypatch):
    monkeypatch.delenv("GRASP_LLM_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(model_server, ["a"])
    assert KEY not in str(model_server.seen()["last"]["headers"])


def test_a_key_with_invalid_characters_is_refused_and_not_shown(model_server, monkeypatch):
    monkeypatch.setenv("GRASP_LLM_API_KEY", f"{KEY}\u00df")
    with pytest.raises(ServerError, match=r"^GRASP_LLM_API_KEY holds characters") as error:
        OpenAIModel(quick(model_server))
    assert KEY not in str(error.value)


def test_rate_limits_are_divided_among_workers(settings_with):
    settings = settings_with(
        llm_url="http://127.0.0.1:1/v1/",
        llm_model="test-model",
        llm_requests_per_minute=600,
        llm_tokens_per_minute=9000,
        llm_concurrency=7,
        llm_max_attempts=3,
    )
    server = LanguageModelServer.of(settings, num_workers=4)
    assert (server.requests_per_minute, server.tokens_per_minute, server.concurrency) == (150, 2250, 7)
    assert (server.url, server.form.max_new_tokens, server.max_attempts) == ("http://127.0.0.1:1/v1", 48, 3)


def test_a_process_has_one_model_and_one_thread(model_server):
    model = load_server_model(quick(model_server))
    assert load_server_model(quick(model_server)) is model
    model.close()
    assert "language-model" not in [thread.name for thread in threading.enumerate()]


def test_under_all_faults_together_nearly_all_prompts_are_answered_once(model_server):
    texts, dice = numbered(300), random.Random(0)  # noqa: S311 - no secret
    faults = [fault for name, fault in TRANSIENT.items() if name not in ("hang", "trickle")]
    slow = [TRANSIENT["hang"], TRANSIENT["trickle"]]
    script = {text: [dice.choice(faults) for _ in range(dice.choice([0, 0, 1, 1, 2, 3]))] for text in texts}
    for text in dice.sample(texts, 20):
        script[text] = [dice.choice(slow)]
    lost = set(dice.sample(texts, 12))
    script |= {text: [dice.choice([{"kind": "wrong_model"}, {"kind": "status", "status": 400}])] for text in lost}
    model_server.script(prompts=script, default={"kind": "answer", "seconds": 0.01})
    answers = dict(zip(texts, ask(model_server, texts, timeout_seconds=1.5), strict=True))
    seen = model_server.seen()
    hit = [text for text in texts if script[text] and text not in lost]
    assert len(hit) > 150
    assert sum(bool(answers[text].text) for text in hit) >= 0.99 * len(hit)
    assert all(answers[text].text for text in texts if not script[text])
    assert all(answers[text].error in ("wrong_model", "rejected_prompt") for text in lost)
    assert max(seen["answers"].values()) == 1
    assert all(seen["requests"][text] == answer.num_attempts for text, answer in answers.items())


def test_the_test_server_also_lists_its_models_and_embeds(model_server):
    assert [model["id"] for model in model_server.call("/v1/models")["data"]] == ["test-model"]
    embedded = model_server.call("/v1/embeddings", {"model": "test-encoder", "input": ["a", "b", "a"]})
    first, other, again = [each["embedding"] for each in embedded["data"]]
    assert first == again != other
