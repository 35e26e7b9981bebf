"""The language model interface and its in-process implementation by transformers.

`language_model_http.py` implements the same interface for a server.

A model folder holds Hugging Face files (config, tokenizer, safetensors) or exactly one GGUF file. Decoding is greedy,
so a prompt always has the same answer. All prompts of a job start with the same instruction and examples. Their
key/value cache is computed once and shared, which makes a generation about three times cheaper.
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from spark_jobs.models.account import POLL_SECONDS, Account, Reply, Usage

Messages = list[dict[str, str]]  # chat messages: role and content
OUT_OF_BUDGET = "out_of_budget"  # error of a prompt that was not sent because the limits were reached
_THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


class ModelFolderError(ValueError):
    """The model folder cannot be used; the message names the folder and the setting."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote for one prompt, and its cost.

    `seconds` is the prompt's share of its batch's wall time, or the latency of the server's last answer. Tokens are
    summed over all attempts. If an attempt may have been billed but reported no tokens, they are estimated from the
    request's length and the longest possible answer. On failure `error` has the reason and `text` is empty; `failure`
    says more, for people.
    """

    text: str
    num_input_tokens: int
    num_output_tokens: int
    seconds: float
    num_attempts: int = 1
    error: str | None = None
    failure: str | None = None


NOT_SENT = Generation("", 0, 0, 0.0, num_attempts=0, error=OUT_OF_BUDGET)


class LanguageModel(Protocol):
    """Answers chat prompts."""

    def limit(self, account: Account) -> None:
        """Draw from this account from now on."""
        ...

    def generate(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Generation]]:
        """Yield (index of the prompt, generation) as they finish, in any order.

        Raises only if the model cannot be used at all. A prompt that fails has a generation with an `error`.
        """
        ...


def without_thoughts(text: str) -> str:
    """The text without the thoughts that a reasoning model writes first, often empty ones."""
    found = _THOUGHTS.match(text)
    return text[found.end() :] if found else text


def decoding_parameters(max_new_tokens: int) -> dict[str, object]:
    """Decoding settings, part of the generation key: they decide the answer together with model and prompt."""
    return {"strategy": "greedy", "max_new_tokens": max_new_tokens}


def check_model_folder(folder: Path) -> None:
    """Check the files without loading them; raises `ModelFolderError` for a missing, malformed or truncated one."""
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    try:
        gguf = _gguf_file(folder)
        if gguf:
            _check_gguf(folder / gguf)
            return
        json.loads((folder / "config.json").read_text())
        json.loads((folder / "tokenizer_config.json").read_text())
        if not weights:
            raise FileNotFoundError("no *.safetensors and no *.gguf file")
        for file in weights:
            with safe_open(file, framework="np") as opened:  # checks the header against the file's length
                opened.keys()
    except (OSError, ValueError, SafetensorError) as error:
        raise _unusable(folder, error) from error


@cache
def load_model(folder: Path, max_new_tokens: int, batch_size: int) -> LanguageModel:
    """The model of this process: the first call loads it, later calls with the same arguments reuse it."""
    return TransformersModel(folder, max_new_tokens, batch_size)


class TransformersModel:
    """A causal language model on the CPU: float32, one thread, because Spark already runs one worker per core."""

    def __init__(self, folder: Path, max_new_tokens: int, batch_size: int, reuse_prefix: bool = True) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils.logging import disable_progress_bar

        check_model_folder(folder)
        torch.set_num_threads(1)
        disable_progress_bar()
        source: dict[str, Any] = {"local_files_only": True}
        if gguf := _gguf_file(folder):
            source["gguf_file"] = gguf
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **source)
            # bf16 is a hundred times slower on CPUs without bf16 support.
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source).eval()
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _unusable(folder, error) from error
        if not self._tokenizer.chat_template:
            raise ModelFolderError(f"GRASP_LLM: {folder} has no chat template: an instruction-tuned model is needed")
        end = self._tokenizer.eos_token_id
        # Not read from the folder: some models ship sampling settings.
        self._decoding = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end
        )
        self._batch_size = batch_size
        self._reuse_prefix = reuse_prefix
        self._prefix: tuple[list[int], Any] | None = None  # tokens and key/value cache of the last call
        self._purse = Account().purse()

    def limit(self, account: Account) -> None:
        """Draw from this account from now on; not to be called during a generation."""
        self._purse = account.purse()

    def generate(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Generation]]:
        """Answer in batches: of similar length, or the first prompts first where a limit may leave out the last.

        Their shared first tokens are computed once.
        """
        tokens = [self._tokens(prompt) for prompt in prompts]
        shared = self._shared_tokens(tokens)
        waiting = list(range(len(prompts)))
        if not self._purse.account.is_limited:
            waiting.sort(key=lambda index: len(tokens[index]))
        while waiting:
            # One batch at a time: what is reserved is missing to more urgent prompts of other workers.
            granted, refused = self._reserve(waiting[: self._batch_size], tokens)
            waiting = waiting[len(granted) + len(refused) :]
            if granted:
                yield from zip(granted, self._answer([tokens[index] for index in granted], shared), strict=True)
            elif not refused:
                time.sleep(POLL_SECONDS)
            yield from ((index, NOT_SENT) for index in refused)

    def _answer(self, batch: list[list[int]], shared: list[int]) -> list[Generation]:
        """Answer prompts whose cost is reserved, and settle for each."""
        account, used = self._purse.account, [Usage()] * len(batch)
        try:
            answers = self._generate_batch(batch, shared)
            used = [account.usage(answer.num_input_tokens, answer.num_output_tokens) for answer in answers]
        finally:
            for tokens, each in zip(batch, used, strict=True):
                self._purse.settle(self._most(tokens), each)
        return answers

    def _reserve(self, waiting: Sequence[int], tokens: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """The first prompts that may be answered now, and those that never may; the others have to wait."""
        granted: list[int] = []
        refused: list[int] = []
        for index in waiting:
            reply = self._purse.reserve(self._most(tokens[index]))
            if reply is Reply.LATER:
                break
            (granted if reply is Reply.GRANTED else refused).append(index)
        return granted, refused

    def _most(self, tokens: list[int]) -> Usage:
        return self._purse.account.usage(len(tokens), self._decoding.max_new_tokens)

    def _tokens(self, messages: Messages) -> list[int]:
        encoded = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def _shared_tokens(self, tokens: list[list[int]]) -> list[int]:
        """The first tokens that all prompts share (instruction and examples). Each prompt keeps one of its own."""
        if not self._reuse_prefix or not tokens:
            return []
        first, last = min(tokens), max(tokens)  # the prefix these two share is shared by all
        num = next((place for place, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)
        num = min(len(first), len(last)) if num is None else num
        return first[: min(num, min(map(len, tokens)) - 1)]

    def _prefix_cache(self, shared: list[int], num_prompts: int, num_more: int) -> Any:
        """The key/value cache of the shared tokens for `num_prompts` prompts, with space for `num_more` tokens each."""
        import torch
        from transformers import DynamicCache

        from spark_jobs.models.prefix_cache import batch_cache

        if self._prefix is None or self._prefix[0] != shared:
            with torch.inference_mode():
                empty = DynamicCache(config=self._model.config)
                filled = self._model(torch.tensor([shared]), past_key_values=empty, use_cache=True).past_key_values
            self._prefix = (shared, filled)
        return batch_cache(self._prefix[1], num_prompts, num_more)

    def _generate_batch(self, batch: list[list[int]], shared: list[int]) -> list[Generation]:
        """Answer one batch. Each row is: shared tokens, left padding, the prompt's own tokens."""
        import torch

        started = time.monotonic()
        own = [tokens[len(shared) :] for tokens in batch]
        width = max(map(len, own))
        padding = [width - len(tokens) for tokens in own]
        pad = self._decoding.pad_token_id
        ids = torch.tensor([shared + [pad] * n + tokens for n, tokens in zip(padding, own, strict=True)])
        mask = torch.tensor([[1] * len(shared) + [0] * n + [1] * (width - n) for n in padding])
        cached: dict[str, Any] = {}
        if shared:
            num_more = width + self._decoding.max_new_tokens
            cached["past_key_values"] = self._prefix_cache(shared, len(batch), num_more)
        with torch.inference_mode():
            written = self._model.generate(ids, attention_mask=mask, generation_config=self._decoding, **cached)
        answers = [self._until_end(row[ids.shape[1] :].tolist()) for row in written]
        texts = [self._tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        seconds = (time.monotonic() - started) / len(batch)
        return [
            Generation(without_thoughts(text), len(tokens), len(answer), seconds)
            for text, answer, tokens in zip(texts, answers, batch, strict=True)
        ]

    def _until_end(self, tokens: list[int]) -> list[int]:
        end = self._decoding.eos_token_id
        return tokens[: tokens.index(end)] if end in tokens else tokens


def _gguf_file(folder: Path) -> str | None:
    """Name of the folder's only GGUF file; None if it holds Hugging Face files."""
    found = sorted(path.name for path in folder.glob("*.gguf"))
    if len(found) > 1:
        raise ModelFolderError(f"GRASP_LLM: {folder} holds several GGUF files ({', '.join(found)}): keep one")
    return found[0] if found else None


def _check_gguf(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{file.name} is not a GGUF file")


def _unusable(folder: Path, error: BaseException) -> ModelFolderError:
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelFolderError(
        f"GRASP_LLM: {folder} holds no usable language model ({detail}): run `grasp fetch` or name another folder"
    )
