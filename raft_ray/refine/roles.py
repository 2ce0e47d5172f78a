"""Who plays which role in stage 1 (`refine.rewriter`, `refine.fuser` and `refine.judges`, each a name), and what each
is asked: the prompt files, which a run records with their hashes.

| name | who |
|---|---|
| `self` | the original model, `model.path`, on engines of this run |
| a key of `refine.models` | a model on engines of this run (`path`), or behind an endpoint (`base_url`) |
| `embedding`, `key_facts`, `exact` | a judge that is no model |
| `none` | nobody: no fusion |

Knows nothing about engines, endpoints or rows.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from raft_ray.config import Config, ModelConfig, RefineConfig, RefineModelConfig
from raft_ray.errors import ConfigError
from raft_ray.models.templates import fill, load_prompt, prompt_hash
from raft_ray.refine.generation import Message
from raft_ray.refine.judges import JUDGE_FIELDS, JUDGES

SELF = "self"
NONE = "none"
REWRITE_FIELDS = ("prompt", "answer")
FUSE_FIELDS = ("prompt", "answer", "rewrite")
NO_KEY = "none"
"""openai's client insists on a key; servers that want none ignore it."""


def check_refine(config: Config) -> None:
    """Refuse roles that name nothing, models that are unclear and prompt files that are amiss. Raises `ConfigError`."""
    refine = config.refine
    check_models(refine, models_used(refine))
    models = [SELF, *refine.models]
    _check_names("refine.rewriter", [refine.rewriter], models)
    _check_names("refine.fuser", [refine.fuser], [*models, NONE])
    if not refine.judges and refine.fuser != NONE:
        raise ConfigError(f"refine.judges: none named; take one or more of {', '.join([*JUDGES, *models])}")
    _check_names("refine.judges", refine.judges, [*JUDGES, *models])
    load_prompts(refine)


def check_models(refine: RefineConfig, used: Sequence[str]) -> None:
    """Raises `ConfigError` for a model of `refine.models` that is unclear, and for an endpoint among `used` whose API
    key is not in the environment."""
    for name, model in refine.models.items():
        _check_model(name, model, name in used)


def check_model_judges(key: str, judges: Sequence[str], refine: RefineConfig) -> None:
    """The same, for judges that must be models: `self`, or names in `refine.models`. `key` is the config's."""
    check_models(refine, judges)
    _check_names(key, judges, [SELF, *refine.models])


def models_used(refine: RefineConfig) -> list[str]:
    """Names of the models that have a role, each once."""
    judges = [] if refine.fuser == NONE else [name for name in refine.judges if name not in JUDGES]
    fuser = [] if refine.fuser == NONE else [refine.fuser]
    return list(dict.fromkeys([refine.rewriter, *fuser, *judges]))


def local_models(refine: RefineConfig) -> list[str]:
    """Of those, the models on engines of this run."""
    return [name for name in models_used(refine) if is_local(refine, name)]


def is_local(refine: RefineConfig, name: str) -> bool:
    """The model of this name is on engines of this run, not behind an endpoint."""
    return name == SELF or refine.models[name].path is not None


def model_config(config: Config, name: str) -> ModelConfig:
    """How a local model is loaded. What the original model is trusted with, another one is not."""
    if name == SELF:
        return config.model
    model = config.refine.models[name]
    assert model.path is not None
    return ModelConfig(
        path=model.path,
        dtype=config.model.dtype,
        context=model.context,
        thinking=model.thinking,
        date=config.model.date,
    )


def check_endpoint(name: str, config: RefineModelConfig, *, used: bool = True) -> None:
    """Raises `ConfigError`, naming the key, for what can be known to be wrong before anything is asked. An endpoint
    that is not `used` needs no key in the environment."""
    key = f"refine.models.{name}"
    address = urlsplit(config.base_url or "")
    for wrong, message in (
        (
            address.scheme not in ("http", "https") or not address.hostname,
            f".base_url={config.base_url}: must be an address such as http://localhost:8000/v1",
        ),
        (
            address.username or address.password or address.query,
            f".base_url: must hold no user, password or query; name the key with {key}.api_key_env",
        ),
        (not config.model, ".model: not set; it is the model's name at the endpoint"),
        (config.concurrency < 1, f".concurrency={config.concurrency}: must be at least 1"),
        (config.retries < 0, f".retries={config.retries}: must be at least 0"),
        (not config.timeout > 0, f".timeout={config.timeout}: must be more than 0 s"),
    ):
        if wrong:
            raise ConfigError(f"{key}{message}")
    if used:
        api_key(key, config)


def api_key(key: str, config: RefineModelConfig) -> str:
    """An endpoint's key, from the environment. Raises `ConfigError`, which does not show it."""
    if config.api_key_env is None:
        return NO_KEY
    value = os.environ.get(config.api_key_env, "").strip()
    if not value:
        raise ConfigError(f"{key}.api_key_env: the environment variable {config.api_key_env} is not set")
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise ConfigError(f"{key}.api_key_env: {config.api_key_env} holds characters that no key has")
    return value


@dataclass(frozen=True)
class RefinePrompts:
    """Texts of the prompt files, fields unfilled."""

    rewrite: str
    fuse: str = ""
    """Empty without a fuser."""
    judge: str = ""
    """Empty where no judge is a model."""

    def hashes(self) -> dict[str, str]:
        """The hash of each text that is used."""
        texts = {"rewrite": self.rewrite, "fuse": self.fuse, "judge": self.judge}
        return {name: prompt_hash(text) for name, text in texts.items() if text}


def load_prompts(refine: RefineConfig) -> RefinePrompts:
    """The prompt files that the roles of `refine` need. Raises `ConfigError` naming the key of one that is amiss."""
    fuses = refine.fuser != NONE
    model_judges = fuses and any(name not in JUDGES for name in refine.judges)
    return RefinePrompts(
        load_prompt(refine.rewrite_prompt, REWRITE_FIELDS, "refine.rewrite_prompt"),
        load_prompt(refine.fuse_prompt, FUSE_FIELDS, "refine.fuse_prompt") if fuses else "",
        load_prompt(refine.judge_prompt, JUDGE_FIELDS, "refine.judge_prompt") if model_judges else "",
    )


def rewrite_chat(template: str, messages: Sequence[Message], prompt: str, answer: str) -> list[Message]:
    """What the rewriter reads of a row (Eq. 1): its chat, question and gold answer in the prompt file's text."""
    return asking(messages, fill(template, prompt=prompt, answer=answer))


def asking(messages: Sequence[Message], content: str) -> list[Message]:
    """A row's chat with `content` in the place of its last message."""
    return [*messages[:-1], {"role": "user", "content": content}]


def _check_model(name: str, model: RefineModelConfig, used: bool) -> None:
    key = f"refine.models.{name}"
    here, remote = model.path is not None, model.base_url is not None
    both = "both are set" if here else "neither is set"
    extra = "model" if model.model is not None else "api_key_env"
    parallel = model.tensor_parallel
    for wrong, message in (
        (name in (SELF, NONE, *JUDGES), f": the name {name} is taken; choose another"),
        (here == remote, f": needs path (engines of this run) or base_url (an endpoint), and {both}"),
        (
            here and (model.model is not None or model.api_key_env is not None),
            f".{extra}: is for endpoints, and the model runs here (path); leave it out",
        ),
        (
            remote and model.thinking,
            ".thinking: is for models that run here (path); an endpoint has its own settings",
        ),
        (
            parallel > 1 and model.num_gpus < parallel,
            f".tensor_parallel={parallel}: needs as many GPUs an engine; set {key}.num_gpus={parallel}",
        ),
    ):
        if wrong:
            raise ConfigError(f"{key}{message}")
    if remote:
        check_endpoint(name, model, used=used)


def _check_names(key: str, names: Sequence[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{key}={name}: nobody of that name; did you mean {nearest}? There are {', '.join(known)}; "
                "a model of your own is named in refine.models"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"{key}={list(names)}: a judge is named twice; each name counts once")
