"""The chat completions protocol as pure functions: request bodies, and what an answer or an exception means.

Error codes of `Answer.error` and `Generation.error`. Codes with a star are transient: a retry may succeed.

rate_limited*   429                                 truncated*     JSON that ends too early
timeout*        no complete answer in time, 408     empty*         an answer without text
server_error*   409, 5xx, JSON without an answer    wrong_model    another model answered, or the model is unknown
connection*     refused, reset, closed half-way     certificate    the server's TLS certificate is not trusted
                                                    rejected       any other status: key, quota, parameters, address
"""

import json
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from spark_jobs.models.language_model import Messages

SEED = 0
ANSWER_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "description",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"description": {"type": "string"}},
            "required": ["description"],
            "additionalProperties": False,
        },
    },
}
TRANSIENT = {"rate_limited", "timeout", "server_error", "connection", "truncated", "empty"}
ABOUT_THE_PROMPT = {400, 413, 422}  # the prompt is too long or refused; the server itself works
NEVER_AGAIN = {"insufficient_quota", "billing_hard_limit_reached"}  # 429 codes for which waiting does not help
MAX_TOKENS = 2**24  # of one request: more than any context, and sums still fit the ledger's column
CUT = "length"  # finish reason of an answer that hit the token limit


@dataclass(frozen=True)
class Answer:
    """The outcome of one request. `num_tokens_known` is false if unreported tokens may have been billed."""

    text: str = ""
    error: str | None = None
    is_transient: bool = False
    is_outage: bool = False  # a fault of the server, not of the prompt
    retry_after_seconds: float | None = None
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_tokens_known: bool = True
    detail: str = ""  # for people; never the text of an error message, which may contain the key

    @property
    def failure(self) -> str:
        """For people, for example `rejected (status 401)`."""
        return f"{self.error} {self.detail}".rstrip()


def request_body(prompt: Messages, model: str, max_new_tokens: int, structured: bool) -> dict[str, object]:
    """A greedy request, seeded for servers that break ties at random."""
    body: dict[str, object] = {
        "model": model,
        "messages": prompt,
        "temperature": 0,
        "seed": SEED,
        "max_tokens": max_new_tokens,
    }
    return body | {"response_format": ANSWER_FORMAT} if structured else body


def read_answer(content: bytes, model: str, structured: bool) -> Answer:
    """Parse the body of a 200 response; `model` is the requested model."""
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        return _failed("truncated", num_tokens_known=False)
    return read_completion(payload, model, structured)


def read_completion(payload: Any, model: str, structured: bool) -> Answer:
    """Interpret the decoded body of a 200 response."""
    used = _usage(payload) or {"num_tokens_known": False}
    try:
        choice = payload["choices"][0]
        text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        served = payload.get("model") or model
        was_cut = choice.get("finish_reason") == CUT
    except (LookupError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        return _failed("server_error", **used)
    if served != model:
        return _failed("wrong_model", **used, detail=f"(asked for {model}, answered by {str(served)[:80]})")
    if structured and text:
        described = _description(text)
        if described is None:  # after a length cut, greedy decoding would cut again
            return _failed("truncated", **used, is_transient=not was_cut)
        text = described
    return Answer(text, **used) if text.strip() else _failed("empty", **used)


def read_failure(error: Exception) -> Answer:
    """Interpret an exception of the `openai` client, or our own `TimeoutError`."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    if isinstance(error, APIStatusError):
        return read_status(error.status_code, dict(error.response.headers), error.response.content)
    if isinstance(error, (APITimeoutError, TimeoutError)):
        return _failed("timeout", num_tokens_known=False)
    if isinstance(error, APIConnectionError):
        causes = _causes(error)
        if any(isinstance(each, ssl.SSLCertVerificationError) for each in causes):
            return _failed("certificate")
        never_sent = any(isinstance(each, ConnectionRefusedError) for each in causes)
        return _failed("connection", num_tokens_known=never_sent)
    return _failed("server_error", num_tokens_known=False)


def read_status(status: int, headers: dict[str, str], content: bytes) -> Answer:
    """Interpret a status other than 200; header names are lower-case."""
    try:
        payload = json.loads(content)
    except (ValueError, RecursionError):
        payload = None
    used = _usage(payload)
    if status == 429 and _code(payload) not in NEVER_AGAIN:
        return _failed("rate_limited", **used, retry_after_seconds=retry_after(headers.get("retry-after")))
    if status == 408:
        return _failed("timeout", **used)
    if status == 409 or status >= 500:
        return _failed("server_error", **used, retry_after_seconds=retry_after(headers.get("retry-after")))
    if status == 404 and b"model" in content.lower():
        return _failed("wrong_model", **used, detail="(the server has no such model)")
    return _failed("rejected", **used, is_outage=status not in ABOUT_THE_PROMPT, detail=f"(status {status})")


def retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header in seconds or as an HTTP date; None if it is missing or malformed."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None  # noqa: PLR0124 - not a number


def _failed(error: str, **fields: Any) -> Answer:
    return Answer(error=error, **({"is_transient": error in TRANSIENT, "is_outage": True} | fields))


def _usage(payload: Any) -> dict[str, Any]:
    """Token counts as fields of an `Answer`; empty if the server reports none or an impossible number."""
    usage = payload.get("usage") if isinstance(payload, dict) else None
    if not isinstance(usage, dict):
        return {}
    num_input, num_output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not _is_count(num_input) or not _is_count(num_output):
        return {}
    return {"num_input_tokens": num_input, "num_output_tokens": num_output}


def _is_count(value: object) -> bool:
    """Whether the value is a plausible number of tokens."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS


def _code(payload: Any) -> str | None:
    error = payload.get("error") if isinstance(payload, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _description(text: str) -> str | None:
    """The text of a structured answer; None for broken JSON. Plain text is accepted: some servers ignore the format."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        described = json.loads(text).get("description")
    except (ValueError, RecursionError):
        return None
    return described if isinstance(described, str) else ""


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return found
