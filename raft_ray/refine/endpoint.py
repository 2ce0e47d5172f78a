"""A model behind an OpenAI-compatible chat endpoint: a `Generate` over HTTP.

    asks ──> at most `concurrency` at a time ──> one try ──┬─ answer ─────────────────────> Generation
                                                 ▲         ├─ 429, 5xx, cut, late, garbled ─> pause, again
                                                 └─ pause ─┘      retries used up ─────────> Generation(failed=why)
                                                           └─ any other refusal ───────────> ConfigError, at once

Synchronous outside, asyncio inside. Knows nothing about prompts, judges or rows. The key is read from the environment
at every call: it is never part of the object, of its identity, of a log line or of an error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from raft_ray.config import RefineModelConfig
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.generation import Ask, Generation

if TYPE_CHECKING:
    import openai

_log = logging.getLogger(__name__)

_NO_KEY = "none"  # the client insists on a key; servers that want none ignore it
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY_AFTER = 120.0
_PASSING = frozenset({408, 409, 425, 429})
_DISPENSABLE = ("response_format", "seed", "temperature", "max_tokens")
_WORDS = 300


class Endpoint:
    """A chat endpoint. One call at a time.

    Args:
        name: its key under `refine.models`, for errors.
        config: `base_url`, `model`, and how to ask.
        first_pause: seconds before the first further try; every pause is twice the one before, up to half a minute.

    Raises `ConfigError` for a config that cannot work, a key that is not in the environment included.
    """

    def __init__(self, name: str, config: RefineModelConfig, *, first_pause: float = 0.5) -> None:
        check_endpoint(name, config)
        self._key = f"refine.models.{name}"
        self._config = config
        self._base_url = str(config.base_url).rstrip("/")
        self.identity = f"{self._base_url} {config.model}"
        self._first_pause = first_pause
        self._backoff = wait_exponential(multiplier=first_pause, max=_LONGEST_PAUSE) + wait_random(0, first_pause)
        self._refused: set[str] = set()
        self._counts: Counter[str] = Counter()

    def __call__(
        self,
        asks: Sequence[Ask],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Generation]:
        """See `Generate`. Sampling is as reproducible as the server makes it: it is told a seed for each ask.

        An ask whose retries are used up, or that the server's content filter refuses, comes back `failed`.

        Raises `ConfigError` where the server refuses what trying again cannot mend (401, 404, 400), and `RaftError`
        where every ask used up its retries.
        """
        options = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed, "schema": schema}
        return asyncio.run(self._all(asks, options)) if asks else []

    def usage(self) -> dict[str, float]:
        """Since the start: HTTP requests, how many of them were retries, asks that failed, tokens and their cost."""
        counts = {
            name: self._counts[name] for name in ("requests", "retries", "failures", "input_tokens", "output_tokens")
        }
        input_cost = counts["input_tokens"] * self._config.input_cost
        return {**counts, "cost": (input_cost + counts["output_tokens"] * self._config.output_cost) / 1e6}

    async def _all(self, asks: Sequence[Ask], options: dict[str, Any]) -> list[Generation]:
        import openai

        for library in ("httpx", "httpx2"):  # a line for each request otherwise
            logging.getLogger(library).setLevel(logging.WARNING)
        slots = asyncio.Semaphore(self._config.concurrency)
        spent: list[str] = []
        client = openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=_api_key(self._key, self._config),
            timeout=self._config.timeout,
            max_retries=0,  # retried here, where it is counted and a garbled body too is tried again
        )
        async with client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._one(client, slots, ask, options, spent)) for ask in asks]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if len(spent) == len(asks):
            raise RaftError(
                f"{self._key}: {self._base_url} answered none of {len(asks)} requests "
                f"in {self._config.retries + 1} tries each; the first failed with: {spent[0]}"
            )
        return [task.result() for task in tasks]

    async def _one(
        self,
        client: openai.AsyncOpenAI,
        slots: asyncio.Semaphore,
        ask: Ask,
        options: dict[str, Any],
        spent: list[str],
    ) -> Generation:
        """One ask with its retries; a pause keeps its slot, so that a busy server gets fewer requests."""
        import openai

        tries = AsyncRetrying(
            retry=retry_if_exception(_passing),
            stop=stop_after_attempt(self._config.retries + 1),
            wait=self._pause,
            before_sleep=lambda _: self._counts.update(retries=1),
            reraise=True,
        )
        async with slots:
            try:
                generation: Generation = await tries(self._try, client, ask, options)
            except (openai.OpenAIError, TimeoutError, _Garbled) as error:
                generation = self._unanswered(error, spent)
        self._counts.update(
            failures=int(generation.failed is not None),
            input_tokens=generation.input_tokens,
            output_tokens=generation.output_tokens,
        )
        return generation

    async def _try(self, client: openai.AsyncOpenAI, ask: Ask, options: dict[str, Any]) -> Generation:
        """One answer, asked for again only without a parameter that the server does not know."""
        import openai

        while True:
            sent = self._parameters(ask, **options)
            self._counts.update(requests=1)
            try:
                # The client's own limit is for each read: a server that drips would never reach it.
                async with asyncio.timeout(self._config.timeout):
                    return _generation(await client.chat.completions.create(**sent))
            except (json.JSONDecodeError, UnicodeDecodeError, openai.APIResponseValidationError) as error:
                raise _Garbled("its body is not JSON") from error
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                name = _refused_parameter(error, sent)
                if name is None:
                    raise
                self._do_without(name, error)

    def _parameters(
        self, ask: Ask, *, temperature: float, max_new_tokens: int, seed: int, schema: dict[str, Any] | None
    ) -> dict[str, Any]:
        """What the request says, without what the server refused before."""
        sent: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
        if temperature > 0:
            sent["seed"] = int(np.random.SeedSequence([seed, ask.draw]).generate_state(1)[0]) % 2**31
        if schema is not None:
            json_schema = {"name": "answer", "schema": schema, "strict": True}
            sent["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        kept = {name: value for name, value in sent.items() if name not in self._refused}
        if "max_tokens" in self._refused:
            kept["max_completion_tokens"] = max_new_tokens  # its newer name
        return {"model": self._config.model, "messages": ask.chat, **kept}

    def _do_without(self, name: str, error: openai.APIStatusError) -> None:
        if name not in self._refused:
            self._refused.add(name)
            instead = "max_completion_tokens instead" if name == "max_tokens" else "requests go without it"
            _log.warning("%s: %s does not take %s, %s (%s)", self._key, self._base_url, name, instead, self._why(error))

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: growing and jittered, or from when the server asks to be tried again."""
        error = state.outcome.exception() if state.outcome else None
        asked = _retry_after(error)
        return self._backoff(state) if asked is None else asked + random.uniform(0, self._first_pause)

    def _unanswered(self, error: Exception, spent: list[str]) -> Generation:
        """The generation for an ask that has got no answer, or the error that ends the whole call."""
        why = self._why(error)
        if _passes(error):
            spent.append(why)
            return Generation("", failed=why)
        if _outgrows_context(error):
            return Generation("", too_long=True)
        if getattr(error, "code", None) == "content_filter":
            return Generation("", failed=why)
        key = f"{self._key}{_KEY_TO_MEND.get(getattr(error, 'status_code', 0), '')}"
        raise ConfigError(f"{key}: {self._base_url} refuses model {self._config.model!r}: {why}") from None

    def _why(self, error: Exception) -> str:
        """One line about `error`, in the server's own words where it has any, without the key."""
        import openai

        if isinstance(error, openai.APIStatusError):
            why = f"HTTP {error.status_code}: {_words(error)}"
        elif isinstance(error, TimeoutError | openai.APITimeoutError):
            why = f"no answer within {self._config.timeout:g} s"
        elif isinstance(error, _Garbled):
            why = f"not a chat completion: {error}"
        else:
            why = f"no connection: {error.__cause__ or error}"
        if self._config.api_key_env is not None:
            why = why.replace(_api_key(self._key, self._config), "***")
        line = " ".join(why.split())
        return line if len(line) <= _WORDS else f"{line[:_WORDS]} ..."


def check_endpoint(name: str, config: RefineModelConfig, *, used: bool = True) -> None:
    """Raises `ConfigError`, naming the key, for what can be known to be wrong before anything is asked.

    An endpoint that is not `used` needs no key in the environment.
    """
    key = f"refine.models.{name}"
    address = urlsplit(config.base_url or "")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(f"{key}.base_url={config.base_url}: must be an address such as http://localhost:8000/v1")
    if address.username or address.password or address.query:
        raise ConfigError(f"{key}.base_url: must hold no user, password or query; name the key with {key}.api_key_env")
    if not config.model:
        raise ConfigError(f"{key}.model: not set; it is the model's name at the endpoint")
    for field, least in (("concurrency", 1), ("retries", 0)):
        if getattr(config, field) < least:
            raise ConfigError(f"{key}.{field}={getattr(config, field)}: must be at least {least}")
    if not config.timeout > 0:
        raise ConfigError(f"{key}.timeout={config.timeout}: must be more than 0 s")
    if used:
        _api_key(key, config)


# Where to look first after a refusal.
_KEY_TO_MEND = {401: ".api_key_env", 403: ".api_key_env", 404: ".model"}


class _Garbled(Exception):
    """An answer that is not what the protocol says."""


def _api_key(key: str, config: RefineModelConfig) -> str:
    if config.api_key_env is None:
        return _NO_KEY
    value = os.environ.get(config.api_key_env, "").strip()
    if not value:
        raise ConfigError(f"{key}.api_key_env: the environment variable {config.api_key_env} is not set")
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise ConfigError(f"{key}.api_key_env: {config.api_key_env} holds characters that no key has")
    return value


def _generation(completion: Any) -> Generation:
    """A chat completion as a `Generation`. Servers differ, and the client checks nothing."""
    try:
        choice = completion.choices[0]
        text = choice.message.content
        reason = choice.finish_reason
        usage = completion.usage
        counts = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
    except (AttributeError, IndexError, TypeError) as error:
        raise _Garbled("it has no message") from error
    if not isinstance(text, str | None):
        raise _Garbled("its text is no string")
    declined = getattr(choice.message, "refusal", None) or ("content filter" if reason == "content_filter" else None)
    return Generation(
        "" if declined else text or "",
        truncated=reason == "length",
        failed=f"the model declined: {declined}" if declined else None,
        input_tokens=counts[0],
        output_tokens=counts[1],
    )


def _passing(error: BaseException) -> bool:
    """Whether a further try soon may succeed."""
    return _passes(error) and (_retry_after(error) or 0.0) <= _LONGEST_RETRY_AFTER


def _passes(error: BaseException) -> bool:
    """Whether it is the kind of failure that passes by itself, if only after a long time."""
    import openai

    if isinstance(error, openai.APIStatusError):
        busy = error.status_code in _PASSING or error.status_code >= 500
        return busy and error.code != "insufficient_quota"  # a 429 that only money mends
    return isinstance(error, openai.APIConnectionError | TimeoutError | _Garbled)


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds that the server asks to wait (`Retry-After`: a number, or a date); none if it does not say."""
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds == seconds else None


def _refused_parameter(error: openai.APIStatusError, sent: dict[str, Any]) -> str | None:
    """The parameter that the server does not take, if it says so and a request makes sense without it."""
    words = _words(error)
    for name in _DISPENSABLE:
        named = (error.param or "").partition(".")[0] == name
        if name in sent and (named or any(f"{quote}{name}{quote}" in words for quote in "'\"`")):
            return name
    # Servers differ most in how they refuse this one.
    if "response_format" in sent and any(word in words for word in ("response_format", "json_schema", "guided")):
        return "response_format"
    return None


def _outgrows_context(error: BaseException) -> bool:
    import openai

    if not isinstance(error, openai.BadRequestError):
        return False
    too_long = re.search(r"context (length|window|size)", _words(error), re.IGNORECASE)
    return error.code == "context_length_exceeded" or too_long is not None


def _words(error: openai.APIStatusError) -> str:
    """What the server said."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return str(body or error.response.reason_phrase)
