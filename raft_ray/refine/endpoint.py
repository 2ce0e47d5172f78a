"""A model behind an OpenAI-compatible endpoint, as a `Generate`.

Retries and their pauses are the `openai` client's own: after 429, 408, 409, 5xx, cut connections and time-outs it waits
as the server's Retry-After says, else half a second, twice as long each time up to eight, with jitter. What retrying
cannot mend (an unknown model, a wrong key, a bad request) ends the run with the server's words.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from raft_ray.config import RefineModelConfig
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.generation import Ask, Generation

_log = logging.getLogger(__name__)


class Endpoint:
    """Asks an endpoint, many at a time.

    Args:
        name: among `refine.models`, for messages.
        config: of the model; its `base_url` and `model` are set.

    Raises `ConfigError` when the variable that should hold the key is not set, or the client is missing.
    """

    def __init__(self, name: str, config: RefineModelConfig) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(f"refine.models.{name}: needs the package openai; pip install openai") from error
        self._name = name
        self._config = config
        self._where = f"refine.models.{name}"
        self.identity = f"{config.base_url} {config.model}"
        self._structured = True
        # Without a key of its own the client takes OPENAI_API_KEY, which is none of this endpoint's business.
        self._key = "none" if config.api_key_env is None else os.environ.get(config.api_key_env, "")
        if not self._key:
            raise ConfigError(
                f"{self._where}.api_key_env={config.api_key_env}: this environment variable is not set here; "
                "export the key in it where the cluster's workers start"
            )
        self._openai = openai

    def __call__(
        self,
        asks: Sequence[Ask],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        schema: dict[str, Any] | None = None,
    ) -> list[Generation]:
        """See `Generate`. An ask whose retries are used up comes back as failed.

        Raises `RaftError` for what no retry mends, and when every ask of the call failed.
        """
        made = asyncio.run(self._all(asks, temperature, max_new_tokens, seed, schema))
        if made and all(generation.failed for generation in made):
            raise RaftError(
                f"{self._where}: none of {len(made)} requests to {self._config.base_url} was answered "
                f"after {self._config.retries} retries each: {made[0].failed}"
            )
        return made

    async def _all(
        self, asks: Sequence[Ask], temperature: float, max_new_tokens: int, seed: int, schema: dict[str, Any] | None
    ) -> list[Generation]:
        places = asyncio.Semaphore(self._config.concurrency)
        async with self._openai.AsyncOpenAI(
            base_url=self._config.base_url,
            api_key=self._key,
            timeout=self._config.timeout,
            max_retries=self._config.retries,
        ) as client:

            async def one(ask: Ask) -> Generation:
                async with places:
                    options = {"temperature": temperature, "max_tokens": max_new_tokens, "seed": seed + ask.draw}
                    return await self._one(client, ask, options, schema)

            return list(await asyncio.gather(*(one(ask) for ask in asks)))

    async def _one(self, client: Any, ask: Ask, options: dict[str, Any], schema: dict[str, Any] | None) -> Generation:
        shaped = schema is not None and self._structured
        if shaped:
            form = {"name": "answer", "strict": True, "schema": schema}
            options = {**options, "response_format": {"type": "json_schema", "json_schema": form}}
        try:
            answer = await client.chat.completions.create(model=self._config.model, messages=ask.chat, **options)
        except self._openai.BadRequestError as error:
            if not (shaped and "response_format" in str(error)):
                raise self._refused(error) from None
            if self._structured:
                _log.warning("%s: takes no response_format; asked without from now on", self._where)
                self._structured = False
            options.pop("response_format")
            return await self._one(client, ask, options, None)
        except (
            self._openai.RateLimitError,
            self._openai.InternalServerError,
            self._openai.APIConnectionError,
        ) as error:
            return Generation("", failed=_line(error))
        except (self._openai.APIResponseValidationError, json.JSONDecodeError) as error:
            return Generation("", failed=f"the endpoint's reply is not JSON: {_line(error)}")
        except self._openai.APIStatusError as error:
            raise self._refused(error) from None
        return _generation(answer)

    def _refused(self, error: Exception) -> ConfigError:
        said = _line(error) if self._config.api_key_env is None else _line(error).replace(self._key, "***")
        return ConfigError(f"{self._where}: {self._config.base_url} refuses: {said}")


def _generation(answer: Any) -> Generation:
    """The text of a reply, whatever an endpoint may leave out of it."""
    try:
        choice = answer.choices[0]
        text, cut = choice.message.content, choice.finish_reason == "length"
    except (AttributeError, IndexError, TypeError):
        return Generation("", failed="the endpoint's reply has no choices")
    if not isinstance(text, str):
        return Generation("", failed="the endpoint's reply has no text")
    usage = answer.usage
    return Generation(
        text,
        truncated=cut,
        input_tokens=getattr(usage, "prompt_tokens", 0) or 0,
        output_tokens=getattr(usage, "completion_tokens", 0) or 0,
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
