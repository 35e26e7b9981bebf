"""How server answers are interpreted, including malformed ones."""

import json
import time
from email.utils import formatdate

import pytest

from spark_jobs.models.chat_completions import read_answer, read_status, retry_after


def answer(**changed):
    whole = {
        "model": "m",
        "choices": [{"message": {"content": "A text."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    return json.dumps(whole | changed).encode()


def message(**changed):
    return {"choices": [{"message": changed}]}


def test_a_text_comes_with_its_tokens():
    read = read_answer(answer(), "m", False)
    assert (read.text, read.error, read.num_input_tokens, read.num_output_tokens) == ("A text.", None, 9, 2)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "truncated"),
        (answer()[:-9], "truncated"),
        (b"<html>busy</html>", "truncated"),
        (b"[" * 100_000, "truncated"),
        (b"null", "server_error"),
        (b"[]", "server_error"),
        (b'{"error": {"message": "busy"}}', "server_error"),
        (answer(choices=[]), "server_error"),
        (answer(choices=[None]), "server_error"),
        (answer(choices=[{"message": None}]), "server_error"),
        (answer(**message(content=["parts"])), "server_error"),
        (answer(**message(content=None)), "empty"),
        (answer(**message(content=" \n")), "empty"),
        (answer(model="m-mini"), "wrong_model"),
        (answer(model={"name": "m"}), "wrong_model"),
    ],
)
def test_an_answer_without_text_has_an_error_code(body, error):
    read = read_answer(body, "m", False)
    assert (read.text, read.error, read.is_transient) == ("", error, error != "wrong_model")
    assert read.is_outage


def test_an_answer_without_model_name_or_token_counts_is_accepted():
    read = read_answer(answer(model=None, usage=None), "m", False)
    assert (read.text, read.num_input_tokens, read.num_tokens_known) == ("A text.", 0, False)


def test_a_refusal_field_counts_as_text():
    assert read_answer(answer(**message(content=None, refusal="I cannot.")), "m", True).text == "I cannot."


@pytest.mark.parametrize("tokens", [None, "many", 2.5, True, -5, 10**15])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_impossible_token_counts_are_unknown(name, tokens):
    read = read_answer(answer(usage={"prompt_tokens": 9, "completion_tokens": 2, name: tokens}), "m", False)
    assert (read.text, read.num_tokens_known, read.num_input_tokens) == ("A text.", False, 0)


@pytest.mark.parametrize("usage", [[], "many", {}])
def test_a_malformed_usage_is_ignored(usage):
    assert read_answer(answer(usage=usage), "m", False).text == "A text."


def test_a_structured_answer_that_never_ends_is_truncated():
    endless = '{"description": ' + "[" * 100_000
    assert read_answer(answer(**message(content=endless)), "m", True).error == "truncated"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_prompt_that_is_refused_is_no_outage(status):
    read = read_status(status, {}, b"no JSON")
    assert (read.error, read.is_transient, read.is_outage) == ("rejected", False, False)


def test_a_missing_path_is_not_a_missing_model():
    assert read_status(404, {}, b'{"error": "no such route"}').error == "rejected"
    assert read_status(404, {}, b'{"error": "The model `m` does not exist"}').error == "wrong_model"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", None), ("nan", None)],
)
def test_retry_after_in_seconds(value, seconds):
    assert retry_after(value) == seconds


def test_retry_after_as_a_date():
    assert 28 < retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after(formatdate(time.time() - 30, usegmt=True)) == 0
