"""Who puts features into words: any function from a prompt to a text, a local model, or an endpoint."""

import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from httpx2 import HTTPError
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from hubsae.errors import ConfigError, LabelError
from hubsae.lm import LanguageModel

Labeler = Callable[[str], str]
_MAX_TOKENS = 400
_TRIES = 3
_TIMEOUT_S = 120.0


class LocalLabeler:
    """A language model on this machine: a repository id or folder for mlx-lm, or a `LanguageModel`; greedy."""

    def __init__(self, source: Any, max_tokens: int = _MAX_TOKENS):
        self._model = source if isinstance(source, LanguageModel) else LanguageModel(source)
        self._max_tokens = max_tokens
        checkpoint = self._model.checkpoint
        self.name = (checkpoint.repo_id or checkpoint.folder.name) if checkpoint else "a local model"

    def __call__(self, prompt: str) -> str:
        tokenizer = self._model.tokenizer
        if getattr(tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt}]
            # templates of reasoning models know the word, others ignore it
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False)
            return self._model.generate(ids, max_tokens=self._max_tokens)
        return self._model.generate(prompt, max_tokens=self._max_tokens)


class EndpointLabeler:
    """A server that speaks OpenAI's chat protocol (mlx_lm.server, llama.cpp, vLLM, LM Studio, OpenAI, ...).

    base_url: such as "http://127.0.0.1:8080/v1"; model: its name there; api_key: sent to that server alone.
    """

    def __init__(
        self, base_url: str, model: str | None = None, api_key: str | None = None, max_tokens: int = _MAX_TOKENS
    ):
        from huggingface_hub import InferenceClient

        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"base_url={base_url!r}: expected http:// or https://")
        # without a key of its own the client would send the Hub's token to any server
        self._client = InferenceClient(base_url=base_url, api_key=api_key or "none", timeout=_TIMEOUT_S)
        self._model, self._max_tokens = model, max_tokens
        self.name = model or base_url

    def __call__(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        for attempt in range(1, _TRIES + 1):
            try:
                answer = self._client.chat_completion(
                    messages, model=self._model, max_tokens=self._max_tokens, temperature=0.0
                )
                return answer.choices[0].message.content or ""
            except (OSError, HfHubHTTPError, HTTPError, InferenceTimeoutError) as error:
                status = getattr(getattr(error, "response", None), "status_code", 503)
                if attempt == _TRIES or (status < 500 and status != 429):
                    raise
                time.sleep(2.0**attempt)
        raise AssertionError("the last try returns or raises")


def as_labeler(labeler: Any) -> tuple[Labeler, str]:
    """A labeler and its name, of a function, a `LanguageModel`, an endpoint's URL, a model's repository or folder."""
    found: Any = labeler
    if isinstance(labeler, str) and labeler.startswith(("http://", "https://")):
        found = EndpointLabeler(labeler)
    elif isinstance(labeler, str | Path | LanguageModel):
        found = LocalLabeler(labeler)
    if not callable(found):
        raise ConfigError(
            f"labeler is a {type(labeler).__name__}: expected a function from prompt to text, a model's repository or "
            "folder, or the URL of an endpoint"
        )
    return typing.cast(Labeler, found), str(getattr(found, "name", getattr(found, "__name__", type(found).__name__)))


def ask(labeler: Labeler, prompt: str, what: str) -> str:
    """The labeler's answer; raises `LabelError` with its reason where it fails or gives no text."""
    try:
        answer = labeler(prompt)
    except Exception as error:  # whatever somebody's function raises
        raise LabelError(f"{what}: the labeler failed ({type(error).__name__}: {error})") from error
    if not isinstance(answer, str):
        raise LabelError(f"{what}: the labeler gave a {type(answer).__name__}, not a text")
    return answer
