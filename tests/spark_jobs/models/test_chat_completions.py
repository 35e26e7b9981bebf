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
    assert (read.error, read.is_transient, read.is_outage) == ("rejected_prompt", False, False)


@pytest.mark.parametrize(
    ("error", "code", "is_outage"),
    [
        ({"code": "unsupported_value", "param": "temperature"}, "rejected", True),
        ({"code": None, "param": "seed"}, "rejected", True),
        ({"code": "unknown_parameter"}, "rejected", True),
        ({"code": "invalid_value", "param": "messages[0].content"}, "rejected_prompt", False),
        ({"code": "context_length_exceeded", "param": "messages"}, "rejected_prompt", False),
        ({"code": 400, "param": "input_tokens"}, "rejected_prompt", False),  # as vLLM says that it is too long
        ({"code": 400, "param": "input_text"}, "rejected_prompt", False),
        ({"code": "invalid_type", "param": "prompt"}, "rejected_prompt", False),
        ({"code": None, "param": "prompt_logprobs"}, "rejected", True),
        ({"code": "content_filter", "param": "prompt"}, "content_filter", False),
        ({"code": ["many"], "param": 7}, "rejected_prompt", False),
    ],
)
def test_a_400_is_about_the_settings_or_about_the_prompt(error, code, is_outage):
    read = read_status(400, {}, json.dumps({"error": error}).encode())
    assert (read.error, read.is_transient, read.is_outage) == (code, False, is_outage)


def choice(content, finish):
    return answer(choices=[{"message": {"content": content}, "finish_reason": finish}])


@pytest.mark.parametrize(
    ("content", "finish", "structured", "error"),
    [
        (None, "length", False, "cut"),
        ("", "length", True, "cut"),
        ('{"description": "half', "length", True, "cut"),
        ("<think>\nStill thinking", "length", False, "cut"),
        (None, "content_filter", False, "content_filter"),
        ("Half a", "content_filter", False, "content_filter"),
    ],
)
def test_what_the_prompt_repeats_is_neither_retried_nor_an_outage(content, finish, structured, error):
    read = read_answer(choice(content, finish), "m", structured)
    assert (read.error, read.is_transient, read.is_outage) == (error, False, False)
    assert (read.num_input_tokens, read.num_output_tokens) == (9, 2)


@pytest.mark.parametrize("thoughts", ["<think>\n\n</think>\n\n", "<think>First, the title.</think>"])
def test_thoughts_are_not_part_of_the_text(thoughts):
    assert read_answer(choice(f"{thoughts}A text.", "stop"), "m", False).text == "A text."
    structured = choice(thoughts + '{"description": "A text."}', "stop")
    assert read_answer(structured, "m", True).text == "A text."
    assert read_answer(choice(thoughts, "stop"), "m", False).error == "empty"


def test_a_text_that_ends_at_the_limit_is_a_text():
    assert read_answer(choice("A text that is", "length"), "m", False).text == "A text that is"


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
