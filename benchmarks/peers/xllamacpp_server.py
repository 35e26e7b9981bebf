"""llama.cpp's own OpenAI-compatible HTTP server, in an environment of its own.

    python xllamacpp_server.py REQUEST

Reads:   a JSON object: weights (GGUF file), model (the name that answers carry), num_slots, num_threads
Prints:  the server's address; serves on the loopback interface until standard input closes
"""

import json
import sys
from pathlib import Path

import xllamacpp

CONTEXT = 1024  # tokens of a slot: prompt and answer


def main():
    request = json.loads(Path(sys.argv[1]).read_text())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = request["weights"]
    parameters.model_alias = {request["model"]}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # a free one
    parameters.n_parallel = request["num_slots"]
    parameters.n_ctx = CONTEXT * request["num_slots"]
    parameters.cpuparams.n_threads = request["num_threads"]
    parameters.cpuparams_batch.n_threads = request["num_threads"]
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
