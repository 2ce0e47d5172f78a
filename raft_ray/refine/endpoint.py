"""A model behind an OpenAI-compatible chat endpoint: a `Generate` over HTTP.

    requests ──> `concurrency` at a time ──> openai's client, `retries` ──┬─ answer ────────────> Completion
                                                                          ├─ retries used up ───> Completion(failed=why)
                                                                          └─ any other refusal ─> ConfigError, at once

The client retries 408, 409, 429, 5xx, time-outs and lost connections, with growing pauses or after the pause that the
server asks for, two minutes at most; `_HttpClient` makes answers that drip or are garbled look like these to it. The
key is read from the environment at every call: it is in no attribute, identity, log line or error.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np
import openai

from raft_ray.config import RefineModelConfig
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.generation import Completion, Request
from raft_ray.refine.roles import api_key, check_endpoint

_log = logging.getLogger(__name__)

_DISPENSABLE = ("response_format", "seed", "temperature", "max_tokens")
_MOST_CHARACTERS = 300
_KEY_TO_MEND = {401: ".api_key_env", 403: ".api_key_env", 404: ".model"}
"""Where to look first after a refusal."""


class Endpoint:
    """A chat endpoint. One call at a time. `name`: its key under `refine.models`, for errors. `config`: `base_url`,
    `model`, and how to ask. Raises `ConfigError` for a config that cannot work, a key that is not in the environment
    included."""

    def __init__(self, name: str, config: RefineModelConfig) -> None:
        check_endpoint(name, config)
        self._key = f"refine.models.{name}"
        self._config = config
        self._base_url = str(config.base_url).rstrip("/")
        self.identity = f"{self._base_url} {config.model}"
        self._refused: set[str] = set()
        self._spent: list[str] = []

    def __call__(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Completion]:
        """See `Generate`. Sampling is as reproducible as the server makes it: it is told a seed for each request. A
        request whose retries are used up, or that the server's content filter refuses, comes back `failed`. Raises
        `ConfigError` where the server refuses what trying again cannot mend (401, 404, 400), and `RaftError` where
        every request used up its retries."""
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed, "schema": schema}
        return asyncio.run(self._all(requests, options)) if requests else []

    async def _all(self, requests: Sequence[Request], options: dict[str, Any]) -> list[Completion]:
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request otherwise
        self._spent = []
        slots = asyncio.Semaphore(self._config.concurrency)
        client = openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=api_key(self._key, self._config),
            timeout=self._config.timeout,
            max_retries=self._config.retries,
            http_client=_HttpClient(self._config.timeout),
        )
        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._one(client, slots, request, options)) for request in requests]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if len(self._spent) == len(requests):
            raise RaftError(
                f"{self._key}: {self._base_url} answered none of {len(requests)} requests "
                f"in {self._config.retries + 1} tries each; the first failed with: {self._spent[0]}"
            )
        return [task.result() for task in tasks]

    async def _one(
        self, client: openai.AsyncOpenAI, slots: asyncio.Semaphore, request: Request, options: dict[str, Any]
    ) -> Completion:
        """One request; the client's pauses keep its slot, so that a busy server gets fewer requests."""
        completion = None
        async with slots:
            while completion is None:
                sent = self._parameters(request, **options)
                try:
                    response = await client.chat.completions.with_raw_response.create(**sent)
                    completion = _completion(response.http_response)
                except openai.APIError as error:
                    if refused := _refused_parameter(error, sent):
                        self._do_without(refused, error)
                    else:
                        completion = self._unanswered(error)
        return completion

    def _parameters(
        self, request: Request, *, temperature: float, max_new_tokens: int, seed: int, schema: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What the request says, without what the server refused before."""
        sent: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
        if temperature > 0:
            sent["seed"] = int(np.random.SeedSequence([seed, request.sample_index]).generate_state(1)[0]) % 2**31
        if schema is not None:
            json_schema = {"name": "answer", "schema": schema, "strict": True}
            sent["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        kept = {name: value for name, value in sent.items() if name not in self._refused}
        if "max_tokens" in self._refused:
            kept["max_completion_tokens"] = max_new_tokens  # its newer name
        return {"model": self._config.model, "messages": request.chat, **kept}

    def _do_without(self, name: str, error: openai.APIError) -> None:
        if name not in self._refused:
            self._refused.add(name)
            instead = "max_completion_tokens instead" if name == "max_tokens" else "requests go without it"
            _log.warning("%s: %s does not take %s, %s (%s)", self._key, self._base_url, name, instead, self._why(error))

    def _unanswered(self, error: openai.APIError) -> Completion:
        """The completion for a request that has got no answer, or the error that ends the whole call."""
        why = self._why(error)
        status = getattr(error, "status_code", None)
        busy = status is None or status in (408, 409, 429) or status >= 500
        if busy and error.code != "insufficient_quota":
            self._spent.append(why)
            return Completion("", failed=why)
        if status == 400 and (
            error.code == "context_length_exceeded"
            or re.search(r"context (length|window|size)", _words(error), re.IGNORECASE)
        ):
            return Completion("", too_long=True)
        if error.code == "content_filter":
            return Completion("", failed=why)
        key = f"{self._key}{_KEY_TO_MEND.get(status or 0, '')}"
        raise ConfigError(f"{key}: {self._base_url} refuses model {self._config.model!r}: {why}") from None

    def _why(self, error: openai.APIError) -> str:
        """One line about `error`, in the server's own words where it has any, without the key."""
        if isinstance(error, openai.APIStatusError):
            why = f"HTTP {error.status_code}: {_words(error)}"
        elif isinstance(error, openai.APITimeoutError):
            why = f"no answer within {self._config.timeout:g} s"
        elif isinstance(error.__cause__, httpx2.DecodingError):
            why = f"not a chat completion: {error.__cause__}"
        else:
            why = f"no connection: {error.__cause__ or error}"
        if self._config.api_key_env is not None:
            why = why.replace(api_key(self._key, self._config), "***")
        line = " ".join(why.split())
        return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."


class _HttpClient(openai.DefaultAsyncHttpxClient):
    """Tells openai's client, by what it raises, what else is worth a retry. `limit`: seconds for one answer as a whole;
    the client's own limit is for each read, and a server that drips would never reach it."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._limit):
                response = await super().send(request, **options)
                await response.aread()
        except TimeoutError as error:
            raise httpx2.ReadTimeout("the answer is late", request=request) from error
        if response.is_success:
            _completion(response)
        elif "insufficient_quota" in response.text:
            response.headers["x-should-retry"] = "false"  # a 429 that only money mends
        return response


def _completion(response: httpx2.Response) -> Completion:
    """The chat completion in a response. Raises `httpx2.DecodingError`, which the client retries, for anything else."""

    def garbled(why: str) -> httpx2.DecodingError:
        return httpx2.DecodingError(why, request=response.request)

    try:
        body = response.json()
    except ValueError as error:
        raise garbled("its body is not JSON") from error
    try:
        choice = body["choices"][0]
        text, declined = choice["message"].get("content"), choice["message"].get("refusal")
        reason, usage = choice.get("finish_reason"), body.get("usage") or {}
        input_tokens, output_tokens = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    except (AttributeError, LookupError, TypeError) as error:
        raise garbled("it has no message") from error
    if not isinstance(text, str | None):
        raise garbled("its text is no string")
    declined = declined or ("content filter" if reason == "content_filter" else None)
    return Completion(
        "" if declined else text or "",
        truncated=reason == "length",
        failed=f"the model declined: {declined}" if declined else None,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def _refused_parameter(error: openai.APIError, sent: dict[str, Any]) -> str | None:
    """The parameter that the server does not take, if it says so and a request makes sense without it."""
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return None
    words = _words(error)
    for name in _DISPENSABLE:
        named = (error.param or "").partition(".")[0] == name
        if name in sent and (named or any(f"{quote}{name}{quote}" in words for quote in "'\"`")):
            return name
    # Servers differ most in how they refuse this one.
    if "response_format" in sent and any(word in words for word in ("response_format", "json_schema", "guided")):
        return "response_format"
    return None


def _words(error: openai.APIError) -> str:
    """What the server said."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return str(body or error.message)
