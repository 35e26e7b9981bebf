"""The HTTP engine and a real server understand each other: llama.cpp's own, with the default model's weights."""

import pytest

from benchmarks.generation.llama_cpp import running_server
from grasp.settings import Settings, SettingsError
from spark_jobs.generation.prompts import ITEM, item_input, messages
from spark_jobs.models.language_model_http import OpenAIModel, Server

pytestmark = pytest.mark.integration

TITLES = ("Heat", "Fargo", "Jaws", "Alien", "Toy Story", "Babe", "Casino", "Nixon", "Sabrina", "GoldenEye")


@pytest.fixture(scope="module")
def url(missing):
    """Of the home that `make test` has, where the weights and llama.cpp's environment are kept."""
    try:
        settings = Settings.load()
    except SettingsError:
        missing("GRASP_HOME is not set")
    with running_server(settings, "smollm2") as url:
        yield url


@pytest.mark.parametrize("structured", [False, True])
def test_a_real_server_answers_every_prompt_and_says_what_it_took(url, structured):
    facts = [item_input({"title": title, "attributes": {"genres": "Drama"}}, ()) for title in TITLES]
    server = Server(url, "smollm2", 48, structured=structured, concurrency=2, timeout_seconds=300, max_attempts=2)

    with OpenAIModel(server) as model:
        answers = dict(model.generate([messages(ITEM, each) for each in facts]))

    answered = [answers[place] for place in range(len(TITLES)) if answers[place].error is None]
    assert len(answered) >= (5 if structured else len(TITLES))  # a structured one may be cut before it ends
    assert {answer.error for answer in answers.values()} <= {None, "truncated"}
    assert all(answer.num_input_tokens > 300 and 0 < answer.num_output_tokens <= 48 for answer in answered)
    assert not any(answer.text.startswith("{") for answer in answered)
    assert "Heat" in answers[0].text


def test_another_model_than_the_one_that_was_asked_for_is_refused(url):
    with OpenAIModel(Server(url, "qwen", 8, timeout_seconds=300)) as model:
        [(_, answer)] = model.generate([messages(ITEM, item_input({"title": "Heat", "attributes": {}}, ()))])

    assert (answer.text, answer.error, answer.num_attempts) == ("", "wrong_model", 1)
