"""The chat completions protocol as pure functions: request bodies, and what an answer or an exception means.

Error codes of `Answer.error` and `Generation.error`. Transient ones are retried at once. `REPEATING` ones come from the
prompt: greedy decoding would give them again.

transient                                               repeating
rate_limited   429                                      cut               no usable text within the limit of tokens
timeout        no complete answer in time, 408          content_filter    the server's filter held back the text
server_error   409, 5xx, JSON without an answer         rejected_prompt   400, 413, 422: too long, malformed
connection     refused, reset, closed half-way
truncated      JSON that ends too early                 others: the settings or the account are wrong
empty          an answer without text (also repeating)  wrong_model       another model answered, or it is unknown
                                                        certificate       the server's TLS certificate is not trusted
                                                        rejected          any other status: key, quota, parameters
"""

import json
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from grasp.settings import DEFAULT_PARAMETERS, Settings
from spark_jobs.models.language_model import Messages, without_thoughts

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
WRONG_SETTINGS = {"certificate", "rejected", "wrong_model"}
LASTING = WRONG_SETTINGS | {"content_filter", "cut", "rejected_prompt"}  # no wait ends them
REPEATING = ("content_filter", "cut", "empty", "rejected_prompt")
ABOUT_THE_PROMPT = {400, 413, 422}  # the prompt is too long or refused; the server itself works
FILTERED = {"content_filter", "content_policy_violation"}  # codes of a filter
# Parameters that hold the prompt, beside the parts of `messages`; vLLM names the last two when it is too long.
PROMPT_PARAMETERS = {"prompt", "input", "input_text", "input_tokens"}
# Codes of 400 and 404 that are about every request, whatever its prompt.
ABOUT_THE_SETTINGS = {
    "unsupported_parameter",
    "unsupported_value",
    "unknown_parameter",
    "missing_required_parameter",
    "invalid_type",
    "invalid_value",
}
NEVER_AGAIN = {"insufficient_quota", "billing_hard_limit_reached"}  # 429 codes for which waiting does not help
MAX_TOKENS = 2**24  # of one request: more than any context, and sums still fit the ledger's column
CUT = "length"  # finish reason of an answer that hit the token limit
_NAME = re.compile(r"[a-z_.]{1,40}")


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


@dataclass(frozen=True)
class RequestForm:
    """Everything of a request but its prompt. `parameters` are further ones, as JSON."""

    model: str
    max_new_tokens: int
    structured: bool = False
    tokens_parameter: str = "max_tokens"
    parameters: str = DEFAULT_PARAMETERS

    @classmethod
    def of(cls, settings: Settings) -> "RequestForm":
        return cls(
            settings.llm_model,
            settings.llm_max_new_tokens,
            settings.llm_structured,
            settings.llm_tokens_parameter,
            settings.llm_parameters,
        )

    def body(self, prompt: Messages) -> dict[str, object]:
        body: dict[str, object] = {"model": self.model, "messages": prompt, self.tokens_parameter: self.max_new_tokens}
        body |= json.loads(self.parameters)
        return body | {"response_format": ANSWER_FORMAT} if self.structured else body


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
        end = str(choice.get("finish_reason"))
    except (LookupError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        return _failed("server_error", **used)
    if served != model:
        return _failed("wrong_model", **used, detail=f"(asked for {model}, answered by {str(served)[:80]})")
    if end in FILTERED:
        return _failed("content_filter", **used, is_outage=False)
    text = without_thoughts(text)
    described = _description(text) if structured and text else text
    if described and described.strip() and not (end == CUT and text.lstrip().startswith("<think>")):
        return Answer(described, **used)
    if end == CUT:  # greedy decoding would be cut again
        return _failed("cut", **used, is_outage=False, detail="(by GRASP_LLM_MAX_NEW_TOKENS)")
    return _failed("truncated" if described is None else "empty", **used)


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
    if status == 429 and _error(payload, "code") not in NEVER_AGAIN:
        return _failed("rate_limited", **used, retry_after_seconds=retry_after(headers.get("retry-after")))
    if status in (408, 409) or status >= 500:
        error = "timeout" if status == 408 else "server_error"
        return _failed(error, **used, retry_after_seconds=retry_after(headers.get("retry-after")))
    if status == 404 and b"model" in content.lower():
        return _failed("wrong_model", **used, detail="(the server has no such model)")
    code, parameter = _error(payload, "code"), _error(payload, "param")
    if code in FILTERED:
        return _failed("content_filter", **used, is_outage=False)
    # Nothing that is not a plain name: it may contain the key.
    names = [name for name in (code, parameter) if name and _NAME.fullmatch(name)]
    detail = f"({', '.join([f'status {status}', *names])})"
    is_of_prompt = parameter.startswith("messages") or parameter in PROMPT_PARAMETERS
    if status in ABOUT_THE_PROMPT and (is_of_prompt if parameter else code not in ABOUT_THE_SETTINGS):
        return _failed("rejected_prompt", **used, is_outage=False, detail=detail)
    return _failed("rejected", **used, detail=detail)


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


def _error(payload: Any, name: str) -> str:
    """A field of the vendor's error; empty if it is missing or no text."""
    error = payload.get("error") if isinstance(payload, dict) else None
    value = error.get(name) if isinstance(error, dict) else None
    return value if isinstance(value, str) else ""


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
