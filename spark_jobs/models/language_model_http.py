"""The language model port by HTTP: any OpenAI-compatible server (vLLM, llama.cpp, a vendor).

**The key.** A server that wants one finds it in `GRASP_LLM_API_KEY`, which each worker process reads from its own
environment. It is no setting and is in no closure, Spark configuration or command line. With a local master, workers
inherit the environment of the job. On a cluster it has to be in the environment of the executors: a Kubernetes secret
by `spark.kubernetes.executor.secretKeyRef.GRASP_LLM_API_KEY=SECRET:KEY`, or the environment file of the standalone
worker or YARN node manager. Never `spark.executorEnv`: Spark's UI shows that.

**What a request costs.** `chat.completions.create` takes 3.5 ms of CPU for one, most of it for building and checking
pydantic models that are not needed here; `with_raw_response` 2.6 ms. `client.post` with the raw response as its type,
which the `openai` client has for endpoints it does not know, takes 1.5 ms and keeps the client's connections,
authentication and errors.

Prompts are in flight together in an event loop on a thread of its own. It goes on while the caller stores what it got:
a loop that stood still meanwhile would let answers time out that were long there, and pay for them twice.
"""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from grasp.progress import say
from grasp.settings import Settings
from spark_jobs.models.chat_completions import Answer, read_answer, read_failure, request_body
from spark_jobs.models.circuit_breaker import Circuit
from spark_jobs.models.language_model import OUT_OF_BUDGET, Generation, LanguageModel, Limits, Messages
from spark_jobs.models.rate_limit import Budget, RateLimit

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY_VARIABLE = "GRASP_LLM_API_KEY"
BYTES_PER_TOKEN = 4  # an estimate; what a request may reserve takes one, which no tokenizer exceeds


class ServerError(ValueError):
    """The server cannot be asked at all; the message names the setting, never the key."""


@dataclass(frozen=True)
class Server:
    """Which model to ask where, how hard and how patiently; limits are those of one worker. Holds no key.

    A prompt that failed waits a random time up to `backoff_seconds`, doubled with every failure, and no less than the
    server's Retry-After, of which `max_retry_after_seconds` are honoured. `max_calls` counts every attempt.
    """

    url: str
    model: str
    max_new_tokens: int
    structured: bool = False
    concurrency: int = 16
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    timeout_seconds: float = 60
    max_attempts: int = 5
    backoff_seconds: float = 1
    max_backoff_seconds: float = 30
    max_retry_after_seconds: float = 120
    max_failures_in_a_row: int = 10
    circuit_pause_seconds: float = 10
    circuit_patience_seconds: float = 300
    max_calls: int | None = None
    max_tokens: int | None = None

    @classmethod
    def of(cls, settings: Settings, num_workers: int) -> "Server":
        """The share of one of `num_workers` processes that ask at the same time."""
        return cls(
            url=settings.llm_url,
            model=settings.llm_model,
            max_new_tokens=settings.llm_max_new_tokens,
            structured=settings.llm_structured,
            concurrency=settings.llm_concurrency,
            requests_per_minute=settings.llm_requests_per_minute / num_workers,
            tokens_per_minute=settings.llm_tokens_per_minute / num_workers,
            timeout_seconds=settings.llm_timeout_seconds,
            max_attempts=settings.llm_max_attempts,
        )


@cache
def load_server_model(server: Server) -> LanguageModel:
    """The model of this process: its connections and limits serve all calls with the same arguments."""
    return OpenAIModel(server)


@dataclass
class _Prompt:
    """One prompt on its way: the request's bytes, and what its attempts have cost so far."""

    body: bytes
    max_new_tokens: int
    num_attempts: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    seconds: float = 0.0
    last_error: str | None = None

    @property
    def likely_tokens(self) -> int:
        return len(self.body) // BYTES_PER_TOKEN + self.max_new_tokens

    @property
    def most_tokens(self) -> int:
        return len(self.body) + self.max_new_tokens

    def count(self, answer: Answer, seconds: float) -> None:
        self.num_attempts += 1
        if answer.num_tokens_known:
            self.num_input_tokens += answer.num_input_tokens
            self.num_output_tokens += answer.num_output_tokens
        else:  # it may have been billed: the day's caps would not hold if it were nothing
            self.num_input_tokens += len(self.body) // BYTES_PER_TOKEN
            self.num_output_tokens += self.max_new_tokens
        self.seconds, self.last_error = seconds, answer.error

    def generation(self, answer: Answer) -> Generation:
        # Sent before the budget was over: what came of that is its error, and what it cost has to reach the ledger.
        error = self.last_error or answer.error if answer.error == OUT_OF_BUDGET else answer.error
        return Generation(
            answer.text, self.num_input_tokens, self.num_output_tokens, self.seconds, self.num_attempts, error
        )


class OpenAIModel:
    """A server's model. Greedy, so that a prompt asked again has the same answer as far as the server can."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client = _client(server)
        self._requests = RateLimit(server.requests_per_minute)
        self._tokens = RateLimit(server.tokens_per_minute)
        self._budget = Budget(server.max_calls, server.max_tokens)
        self._circuit = Circuit(
            server.max_failures_in_a_row, server.circuit_pause_seconds, server.circuit_patience_seconds
        )
        self._retrying = retrying(server)
        self._told: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="language-model", daemon=True)
        self._thread.start()

    def __enter__(self) -> "OpenAIModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. A model that serves its process to the end need not be closed."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def limit(self, limits: Limits) -> None:
        """Stop hard at these from now on; called while nothing is being generated."""
        self._budget = Budget(limits.num_calls, limits.num_tokens)

    def generate(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Generation]]:
        """Yield each prompt's place and generation as they finish. To close the iterator early calls off the rest."""
        finished: SimpleQueue[tuple[int, Generation] | None] = SimpleQueue()
        answering = asyncio.run_coroutine_threadsafe(self._answer_all(prompts, finished.put), self._loop)
        answering.add_done_callback(lambda _: finished.put(None))
        try:
            while (generation := finished.get()) is not None:
                yield generation
            answering.result()
        finally:
            answering.cancel()

    async def _answer_all(self, prompts: Sequence[Messages], report: Callable[[tuple[int, Generation]], None]) -> None:
        waiting = iter(enumerate(prompts))

        async def work() -> None:
            for place, prompt in waiting:
                report((place, await self._answer(prompt)))

        # A prompt keeps its place among the concurrent ones while it backs off: who is asked to slow down does.
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._server.concurrency, len(prompts))):
                group.create_task(work())

    async def _answer(self, messages: Messages) -> Generation:
        server = self._server
        body = request_body(messages, server.model, server.max_new_tokens, server.structured)
        prompt = _Prompt(json.dumps(body).encode(), server.max_new_tokens)  # ASCII: even half a surrogate goes through
        answer: Answer = await self._retrying.copy()(self._attempt, prompt)
        if answer.error and answer.error not in self._told and not answer.is_transient:
            self._told.add(answer.error)
            say(f"a prompt went without an answer: {answer.failure}")
        return prompt.generation(answer)

    async def _attempt(self, prompt: _Prompt) -> Answer:
        """One request, as far as budget, circuit and rate limit allow. The limit is last: a refusal waits for none."""
        budget = self._budget  # of this call to its end, also where it is called off and another begins meanwhile
        if not await budget.reserve(prompt.most_tokens):
            return Answer(error=OUT_OF_BUDGET)
        answer, was_sent = Answer(), False
        try:
            if not await self._circuit.admit():
                return Answer(error="circuit_open")
            await self._requests.acquire()
            await self._tokens.acquire(prompt.likely_tokens)
            started, was_sent = time.monotonic(), True
            answer = Answer(num_tokens_known=False)  # as long as nothing came back, also when the call is called off
            answer = await self._send(prompt.body)
        finally:
            used = answer.num_input_tokens + answer.num_output_tokens
            budget.settle(prompt.most_tokens, used if answer.num_tokens_known else prompt.most_tokens, was_sent)
        if answer.num_tokens_known:
            self._tokens.give_back(prompt.likely_tokens - used)
        if answer.error is None:
            self._circuit.succeeded()
        elif answer.is_outage:
            self._circuit.failed(answer.error)
        prompt.count(answer, time.monotonic() - started)
        return answer

    async def _send(self, body: bytes) -> Answer:
        from httpx2 import Response
        from openai import OpenAIError

        try:
            # The client's own limit is one between two bytes: a server that trickles would never reach it.
            async with asyncio.timeout(self._server.timeout_seconds):
                response = await self._client.post("/chat/completions", cast_to=Response, content=body)
        except (OpenAIError, TimeoutError) as error:
            return read_failure(error)
        return read_answer(response.content, self._server.model, self._server.structured)


def api_key(variable: str = KEY_VARIABLE) -> str:
    """The key of this process's environment, or a word that is none; raises `ServerError` where no header can carry it.

    Never empty: without a key the client would take OPENAI_API_KEY, which may be meant for someone else.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ServerError(f"{variable} holds characters that a header may not have")
    return key or "none"


def _client(server: Server) -> "AsyncOpenAI":
    """A client without retries of its own; raises `ServerError` for a key that no header can carry."""
    from httpx2 import AsyncClient, Limits
    from openai import AsyncOpenAI

    limits = Limits(max_connections=None, max_keepalive_connections=server.concurrency)
    http = AsyncClient(limits=limits, timeout=server.timeout_seconds)
    return AsyncOpenAI(api_key=api_key(), base_url=server.url, max_retries=0, http_client=http)


def retrying(server: Server) -> Any:
    """Tenacity's rules: transient errors, exponential backoff with full jitter, never before Retry-After is over."""
    from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt, wait_random_exponential

    backoff = wait_random_exponential(multiplier=server.backoff_seconds, max=server.max_backoff_seconds)

    def answer_of(state: RetryCallState) -> Answer:
        assert state.outcome is not None  # noqa: S101 - tenacity asks after an attempt only
        answer: Answer = state.outcome.result()
        return answer

    def wait(state: RetryCallState) -> float:
        asked = answer_of(state).retry_after_seconds or 0.0
        return min(asked, server.max_retry_after_seconds) + backoff(state)

    return AsyncRetrying(
        stop=stop_after_attempt(server.max_attempts),
        wait=wait,
        retry=retry_if_result(lambda answer: answer.is_transient),
        retry_error_callback=answer_of,
    )
