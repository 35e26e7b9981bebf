"""llama.cpp answering chat prompts, in an environment of its own: how much CPU time a description takes.

    python xllamacpp_engine.py REQUEST

Reads:   a JSON object: weights (GGUF file), prompts (file of chat messages), num_slots, num_threads, max_new_tokens
Prints:  one JSON object: texts, num_output_tokens, cpu_seconds, seconds; loading and a first prompt do not count
"""

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xllamacpp

CONTEXT = 1024  # tokens of a slot: prompt and answer


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    request = json.loads(Path(sys.argv[1]).read_text())
    prompts = json.loads(Path(request["prompts"]).read_text())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = request["weights"]
    parameters.n_parallel = request["num_slots"]
    parameters.n_ctx = CONTEXT * request["num_slots"]
    parameters.cpuparams.n_threads = request["num_threads"]
    parameters.cpuparams_batch.n_threads = request["num_threads"]
    parameters.cache_prompt = True
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)

    def ask(messages):
        return server.handle_chat_completions(
            {"messages": messages, "max_tokens": request["max_new_tokens"], "temperature": 0, "cache_prompt": True}
        )

    ask(prompts[0])
    started, started_cpu = time.perf_counter(), cpu_seconds()
    with ThreadPoolExecutor(request["num_slots"]) as pool:
        answers = list(pool.map(ask, prompts))
    found = {
        "cpu_seconds": cpu_seconds() - started_cpu,
        "seconds": time.perf_counter() - started,
        "num_output_tokens": sum(answer["usage"]["completion_tokens"] for answer in answers),
        "texts": [answer["choices"][0]["message"]["content"] for answer in answers],
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
