"""The language model over HTTP: any OpenAI-compatible server (vLLM, llama.cpp, a vendor).

**The key.** If the server needs a key, each worker process reads `GRASP_LLM_API_KEY` from its own environment. The key
is not a setting, and never part of a closure, a Spark configuration or a command line. With a local master, workers
inherit the environment of the job. On a cluster, put it into the environment of the executors: a Kubernetes secret by
`spark.kubernetes.executor.secretKeyRef.GRASP_LLM_API_KEY=SECRET:KEY`, or the environment file of the standalone worker
or YARN node manager. Do not use `spark.executorEnv`: Spark's UI shows it.

**CPU per request.** `chat.completions.create` takes 3.5 ms of CPU, mostly to build pydantic models that are not needed
here; `with_raw_response` takes 2.6 ms. `client.post` with the raw response as its type takes 1.5 ms and keeps the
client's connections, authentication and errors.

All prompts are in flight in one event loop on its own thread. The loop continues while the caller stores results.
Otherwise answers that had already arrived would time out and be paid for twice.
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
from spark_jobs.models.account import POLL_SECONDS, Account, Reply, Usage
from spark_jobs.models.chat_completions import Answer, RequestForm, read_answer, read_failure
from spark_jobs.models.circuit_breaker import CircuitBreaker
from spark_jobs.models.language_model import OUT_OF_BUDGET, Generation, LanguageModel, Messages
from spark_jobs.models.request_limits import RateLimit

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY_VARIABLE = "GRASP_LLM_API_KEY"
BYTES_PER_TOKEN = 4  # for estimates; reservations assume 1, which no tokenizer exceeds
MESSAGE_TOKENS = 16  # what a chat template adds to a message, at most


class ServerError(ValueError):
    """The server cannot be called at all; the message names the setting, never the key."""


@dataclass(frozen=True)
class LanguageModelServer:
    """Address, model, limits and retry settings of a server; limits are per worker. Holds no key.

    A failed prompt waits a random time up to `backoff_seconds`, doubled with every failure, and at least the server's
    Retry-After (capped at `max_retry_after_seconds`).
    """

    url: str
    form: RequestForm
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

    @classmethod
    def of(cls, settings: Settings, num_workers: int) -> "LanguageModelServer":
        """The settings for one of `num_workers` concurrent processes: each has its share of the rate limits."""
        return cls(
            url=settings.llm_url,
            form=RequestForm.of(settings),
            concurrency=settings.llm_concurrency,
            requests_per_minute=settings.llm_requests_per_minute / num_workers,
            tokens_per_minute=settings.llm_tokens_per_minute / num_workers,
            timeout_seconds=settings.llm_timeout_seconds,
            max_attempts=settings.llm_max_attempts,
        )


@cache
def load_server_model(server: LanguageModelServer) -> LanguageModel:
    """The model of this process. All calls with the same arguments share its connections and limits."""
    return OpenAIModel(server)


@dataclass
class _Prompt:
    """One prompt in flight: the request, and what its attempts have cost so far."""

    messages: Messages
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

    def count(self, answer: Answer, seconds: float) -> None:
        self.num_attempts += 1
        if answer.num_tokens_known:
            self.num_input_tokens += answer.num_input_tokens
            self.num_output_tokens += answer.num_output_tokens
        else:  # possibly billed: counting nothing could break the day's caps
            self.num_input_tokens += len(self.body) // BYTES_PER_TOKEN
            self.num_output_tokens += self.max_new_tokens
        self.seconds, self.last_error = seconds, answer.error

    def generation(self, answer: Answer) -> Generation:
        # If an earlier attempt was sent, report its error, so that its cost reaches the ledger.
        error = self.last_error or answer.error if answer.error == OUT_OF_BUDGET else answer.error
        failure = answer.failure if answer.error and error == answer.error else None
        tokens = (self.num_input_tokens, self.num_output_tokens)
        return Generation(answer.text, *tokens, self.seconds, self.num_attempts, error, failure)


class PromptTokens:
    """The most tokens that a prompt can have, from its bytes and from what the server counted for an earlier prompt.

    Prompts of a run share their first messages. These have at most the tokens of any prompt that contains them.
    """

    def __init__(self) -> None:
        self._counted: tuple[Messages, int] | None = None  # the prompt with the fewest tokens so far

    def most(self, messages: Messages, num_bytes: int) -> int:
        """`num_bytes`: of the whole request, which no tokenizer exceeds."""
        if self._counted is None:
            return num_bytes
        counted, num_tokens = self._counted
        pairs = zip(messages, counted, strict=False)
        num_shared = next((place for place, (one, other) in enumerate(pairs) if one != other), len(counted))
        own = messages[num_shared:]
        rest = sum(len(each["content"].encode(errors="surrogatepass")) + MESSAGE_TOKENS for each in own)
        return min(num_bytes, num_tokens + rest)

    def count(self, messages: Messages, num_tokens: int) -> None:
        if num_tokens and (self._counted is None or num_tokens < self._counted[1]):
            self._counted = messages, num_tokens


class OpenAIModel:
    """The model of a server. Greedy: a repeated prompt has the same answer if the server is deterministic."""

    def __init__(self, server: LanguageModelServer) -> None:
        self._server = server
        self._client = _client(server)
        self._requests = RateLimit(server.requests_per_minute)
        self._tokens = RateLimit(server.tokens_per_minute)
        self._prompt_tokens = PromptTokens()
        self._purse = Account().purse()
        self._circuit = self._closed_circuit()
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
        """Close the connections and end the thread. Not needed if the model lives as long as its process."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def limit(self, account: Account) -> None:
        """Draw from this account from now on; not to be called during a generation.

        A new account is a new run, which asks a server that failed in the last one.
        """
        if account != self._purse.account:
            self._purse, self._circuit = account.purse(), self._closed_circuit()

    def _closed_circuit(self) -> CircuitBreaker:
        server = self._server
        return CircuitBreaker(
            server.max_failures_in_a_row, server.circuit_pause_seconds, server.circuit_patience_seconds
        )

    def generate(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Generation]]:
        """Yield (index of the prompt, generation) as they finish. Closing the iterator early cancels the rest."""
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

        # A prompt keeps its slot while it backs off, so a server that asks for less load gets less.
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._server.concurrency, len(prompts))):
                group.create_task(work())

    async def _answer(self, messages: Messages) -> Generation:
        form = self._server.form
        body = json.dumps(form.body(messages)).encode()  # ASCII, so that lone surrogates pass
        prompt = _Prompt(messages, body, form.max_new_tokens)
        answer: Answer = await self._retrying.copy()(self._attempt, prompt)
        if answer.error and answer.error not in self._told and not answer.is_transient:
            self._told.add(answer.error)
            say(f"a prompt got no answer: {answer.failure}")
        return prompt.generation(answer)

    async def _attempt(self, prompt: _Prompt) -> Answer:
        """One request, if the account, the circuit breaker and the rate limits allow it, checked in this order."""
        # Kept: a call that is cancelled late must not touch the account or the circuit breaker of the next run.
        purse, circuit = self._purse, self._circuit
        most_input = self._prompt_tokens.most(prompt.messages, len(prompt.body))
        most = purse.account.usage(most_input, prompt.max_new_tokens)
        while (reply := purse.reserve(most)) is Reply.LATER:
            await asyncio.sleep(POLL_SECONDS)
        if reply is Reply.REFUSED:
            return Answer(error=OUT_OF_BUDGET)
        answer, used = Answer(), Usage()
        try:
            if not await circuit.admit():
                return Answer(error="circuit_open")
            await self._requests.acquire()
            await self._tokens.acquire(prompt.likely_tokens)
            started, used = time.monotonic(), most  # holds until an answer arrives, also if the call is cancelled
            answer = await self._send(prompt.body)
            if answer.num_tokens_known:
                used = purse.account.usage(answer.num_input_tokens, answer.num_output_tokens)
        finally:
            purse.settle(most, used)
        num_tokens = answer.num_input_tokens + answer.num_output_tokens
        if answer.num_tokens_known:
            self._tokens.give_back(prompt.likely_tokens - num_tokens)
            self._prompt_tokens.count(prompt.messages, answer.num_input_tokens)
        if answer.error is None:
            circuit.succeeded()
        elif answer.is_outage:
            circuit.failed(answer.failure, is_lasting=not answer.is_transient)
        prompt.count(answer, time.monotonic() - started)
        return answer

    async def _send(self, body: bytes) -> Answer:
        from httpx2 import Response
        from openai import OpenAIError

        try:
            # The client's own timeout applies between two bytes: a slow trickle would never reach it.
            async with asyncio.timeout(self._server.timeout_seconds):
                response = await self._client.post("/chat/completions", cast_to=Response, content=body)
        except (OpenAIError, TimeoutError) as error:
            return read_failure(error)
        return read_answer(response.content, self._server.form.model, self._server.form.structured)


def api_key(variable: str = KEY_VARIABLE) -> str:
    """The key from this process's environment, or `none`; raises `ServerError` for characters no HTTP header may have.

    Never empty: without a key the client would send OPENAI_API_KEY, which may belong to another service.
    """
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ServerError(f"{variable} holds characters that an HTTP header may not have")
    return key or "none"


def _client(server: LanguageModelServer) -> "AsyncOpenAI":
    """A client that does not retry by itself; raises `ServerError` for an invalid key."""
    from httpx2 import AsyncClient, Limits
    from openai import AsyncOpenAI

    limits = Limits(max_connections=None, max_keepalive_connections=server.concurrency)
    http = AsyncClient(limits=limits, timeout=server.timeout_seconds)
    return AsyncOpenAI(api_key=api_key(), base_url=server.url, max_retries=0, http_client=http)


def retrying(server: LanguageModelServer) -> Any:
    """Retry transient errors with exponential backoff and full jitter, never before Retry-After has passed."""
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
