"""What the HTTP engine itself costs: throughput as a share of what the server allows, and CPU time per request.

    python -m benchmarks.generation.http_engine

The server answers every request after half a second, in a process of its own; client and server share two cores.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from grasp.settings import ROOT
from spark_jobs.generation.prompts import ITEM, item_input, messages
from spark_jobs.models.language_model import Generation, Messages
from spark_jobs.models.language_model_http import OpenAIModel, Server

SERVER = ROOT / "tests" / "spark_jobs" / "fault_server.py"


@contextmanager
def cores(num_cores: int) -> Iterator[None]:
    """Keep this process and those it starts on the first few cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running_server(seconds: float, self_signed: bool = False) -> Iterator[str]:
    """The base URL of a server that answers after so many seconds, by HTTPS with a certificate of its own."""
    command = [sys.executable, str(SERVER), "--seconds", str(seconds), *(["--self-signed"] if self_signed else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield f"{'https' if self_signed else 'http'}://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.communicate()


def prompts(count: int) -> list[Messages]:
    """Prompts of the size that the jobs send."""
    attributes = {"genres": "Comedy, Drama", "year": "1995"}
    facts = [item_input({"title": f"Film {number}", "attributes": attributes}, ()) for number in range(count)]
    return [messages(ITEM, each) for each in facts]


def measure(
    num_requests: int = 1280, concurrency: int = 64, server_seconds: float = 0.5, num_cores: int = 2
) -> dict[str, float]:
    """Send all requests once, connecting included. Ideal is `concurrency` requests in every `server_seconds`."""
    asked = prompts(num_requests)
    children_before = _cpu_seconds(resource.RUSAGE_CHILDREN)
    with cores(num_cores), running_server(server_seconds) as url:
        server = Server(url, "test-model", max_new_tokens=48, concurrency=concurrency)
        answers, seconds, cpu_seconds = _timed(server, asked)
    server_cpu_seconds = _cpu_seconds(resource.RUSAGE_CHILDREN) - children_before
    ideal = concurrency / server_seconds
    num_answered = sum(answer.error is None for answer in answers)
    return {
        "num_requests": num_requests,
        "num_answered": num_answered,
        "seconds": seconds,
        "requests_per_second": num_answered / seconds,
        "ideal_requests_per_second": ideal,
        "share_of_ideal": num_answered / seconds / ideal,
        "client_cpu_ms_per_request": 1000 * cpu_seconds / num_requests,
        "server_cpu_ms_per_request": 1000 * server_cpu_seconds / num_requests,
    }


def _timed(server: Server, asked: list[Messages]) -> tuple[list[Generation], float, float]:
    """All generations, the seconds they took, and the CPU seconds of this process."""
    with OpenAIModel(server) as model:
        list(model.generate(asked[:1]))  # imports what is imported late
        started, cpu_before = time.perf_counter(), time.process_time()
        answers = [generation for _, generation in model.generate(asked)]
        return answers, time.perf_counter() - started, time.process_time() - cpu_before


def _cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
