"""What a description costs in CPU time: the in-process engine, llama.cpp with the same weights, and Spark around it.

    python -m benchmarks.generation.engine_speed REQUEST      one process of our engine, as the benchmark starts it

Every side answers the same prompts, those of the refresh itself on MovieLens-100K, greedily and on one thread. CPU
seconds, not wall seconds, are compared: they hardly depend on what else the machine does.
"""

import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.core.sessions import local_spark
from benchmarks.data import readers
from benchmarks.data.readers import movielens_folder
from benchmarks.data.vectors import user_facts
from benchmarks.generation import llama_cpp
from benchmarks.peers.running import last_words
from grasp import tables
from grasp.progress import say
from grasp.settings import ROOT, Settings
from spark_jobs.generation.prompts import ITEM, USER, Subject, messages
from spark_jobs.models.language_model import Generation, LanguageModel, Limits, Messages, TransformersModel, load_model

MAX_NEW_TOKENS = 48
BATCH_SIZES = (8, 32)
SLOTS = (1, 2, 4, 8)


def prompts(folder: Path, num: int) -> list[tuple[Subject, dict[str, Any]]]:
    """Canonical inputs, items before users: a job of the refresh asks for one kind, whose prompts share a prefix."""
    source = readers.read(folder)
    users = user_facts(source, source.sequences, ())
    items = [(ITEM, ITEM.to_input(facts, ())) for facts in (source.items or [])[: num - num // 2]]
    return items + [(USER, USER.to_input(facts, ())) for facts in users[: num // 2]]


def ours(settings: Settings, asked: Sequence[Messages], batch_size: int, reuse_prefix: bool = True) -> dict[str, Any]:
    """CPU seconds of one fresh process of our engine; loading does not count."""
    request = {
        "llm": str(settings.llm),
        "prompts": list(asked),
        "batch_size": batch_size,
        "reuse_prefix": reuse_prefix,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request))
        return last_words([sys.executable, "-m", "benchmarks.generation.engine_speed", str(file)], ROOT)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """In a process of our engine: answer the prompts of a request."""
    model = TransformersModel(
        Path(request["llm"]), MAX_NEW_TOKENS, request["batch_size"], reuse_prefix=request["reuse_prefix"]
    )
    asked = request["prompts"]
    list(model.generate(asked[:1]))
    started, started_cpu = time.perf_counter(), _cpu_seconds()
    answers = in_turn(model, asked)
    return {
        "cpu_seconds": _cpu_seconds() - started_cpu,
        "seconds": time.perf_counter() - started,
        "num_output_tokens": sum(each.num_output_tokens for each in answers),
        "texts": [each.text for each in answers],
    }


def in_turn(model: LanguageModel, asked: Sequence[Messages]) -> list[Generation]:
    """The answers in order, one kind of prompt after the other as the jobs ask: all of a call share their beginning."""
    answers: list[Generation] = []
    for _, kind in itertools.groupby(asked, key=lambda prompt: prompt[0]["content"]):
        found = dict(model.generate(list(kind)))
        answers += [found[place] for place in range(len(found))]
    return answers


def against_llama_cpp(settings: Settings, num_prompts: int) -> dict[str, Any]:
    """Every setting of both sides, in turns, on the same prompts."""
    asked = [messages(*each) for each in prompts(movielens_folder(settings), num_prompts)]
    found: dict[str, Any] = {"num_prompts": len(asked), "ours": {}, "llama_cpp": {}}
    for batch_size, slots in zip(BATCH_SIZES, (SLOTS[:2], SLOTS[2:]), strict=True):
        found["ours"][batch_size] = _cost(ours(settings, asked, batch_size), f"ours, batches of {batch_size}")
        for num_slots in slots:
            theirs = llama_cpp.answer(settings, asked, num_slots, MAX_NEW_TOKENS)
            found["llama_cpp"][num_slots] = _cost(theirs, f"llama.cpp, {num_slots} slots")
    return found


def _cost(found: dict[str, Any], name: str) -> dict[str, float]:
    per_text = found["cpu_seconds"] / len(found["texts"])
    say(f"{name}: {per_text:.2f} CPU seconds a description")
    return {key: found[key] for key in ("cpu_seconds", "seconds", "num_output_tokens")}


def identical_texts(settings: Settings, num_prompts: int) -> dict[str, Any]:
    """How many greedy texts are the same with batches and the shared prefix as one by one without."""
    asked = [messages(*each) for each in prompts(movielens_folder(settings), num_prompts)]
    quick = ours(settings, asked, BATCH_SIZES[-1])["texts"]
    plain = ours(settings, asked, 1, reuse_prefix=False)["texts"]
    return {"num_prompts": len(asked), "num_identical": sum(a == b for a, b in zip(quick, plain, strict=True))}


def spark_overhead(settings: Settings, num_prompts: int) -> dict[str, Any]:
    """CPU seconds of the generation stage in Spark with one worker, and of the bare engine in one process.

    Neither the start of the session nor loading the model counts.
    """
    from spark_jobs.generation.ledger import Ledger
    from spark_jobs.generation.live_generation import WORK_DDL, Judge, Prices, Task, generate
    from spark_jobs.storage.lake import Lake

    inputs = [(subject, facts) for subject, facts in prompts(movielens_folder(settings), 2 * num_prompts)]
    facts = [facts for subject, facts in inputs if subject is ITEM][:num_prompts]
    asked = [messages(ITEM, each) for each in facts]
    bare = ours(settings, asked, BATCH_SIZES[-1])
    with tempfile.TemporaryDirectory() as home, local_spark(num_workers=1) as spark:
        lake = Lake(spark, settings.model_copy(update={"lake": Path(home)}))
        rows = [(number, f"{number}", f"{number}", json.dumps(each)) for number, each in enumerate(facts)]
        work = spark.createDataFrame(rows, WORK_DDL)
        make_model = partial(load_model, settings.llm, MAX_NEW_TOKENS, BATCH_SIZES[-1])
        shards = Ledger(lake, tables.ITEM_GENERATION).shards("2026-01-01")
        judge = Judge(ITEM, "benchmark", "benchmark", Prices(), frozenset())
        task = Task(judge, shards, make_model, 0, Limits(), len(rows))
        _warm_up(spark, make_model, asked[:1])
        started, started_cpu = time.perf_counter(), _tree_cpu_seconds()
        generate(lake, task, work, len(rows))
        seconds, cpu = time.perf_counter() - started, _tree_cpu_seconds() - started_cpu
    return {"num_prompts": len(facts), "bare_cpu_seconds": bare["cpu_seconds"], "cpu_seconds": cpu, "seconds": seconds}


def _warm_up(spark: Any, make_model: Callable[[], LanguageModel], asked: Sequence[Messages]) -> None:
    """Have the worker load the model and answer once, which both sides leave out."""

    def load(frames: Iterator[Any]) -> Iterator[Any]:
        list(make_model().generate(asked))
        yield from frames

    spark.range(1, numPartitions=1).mapInPandas(load, "id long").collect()


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _tree_cpu_seconds() -> float:
    """CPU seconds of this process and all its descendants, Spark's JVM and Python workers among them.

    What has ended counts with its parent, which has waited for it.
    """
    import psutil

    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return float(sum(each.user + each.system + each.children_user + each.children_system for each in times))


def main() -> None:
    print(json.dumps(answer(json.loads(Path(sys.argv[1]).read_text()))), flush=True)


if __name__ == "__main__":
    main()
