"""The endpoint against a server that goes wrong by script."""

from __future__ import annotations

import logging
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from faulty_server import FaultyServer, Reply, fails, faulty_server, says

from raft_ray.config import RefineModelConfig
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.endpoint import Endpoint
from raft_ray.refine.generation import Completion, Request

KEY = "sk-very-secret-0123456789"
SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def config(server: FaultyServer | None = None, **changes: Any) -> RefineModelConfig:
    url = server.url if server else "http://localhost:1/v1"
    values = {"base_url": url, "model": "m", "retries": 2, "timeout": 20.0, "api_key_env": "JUDGE_KEY"}
    return RefineModelConfig(**(values | changes))


def endpoint(server: FaultyServer, **changes: Any) -> Endpoint:
    return Endpoint("judge", config(server, **changes))


def ask(text: str = "hi", sample_index: int = 0) -> Request:
    return Request([{"role": "user", "content": text}], sample_index)


def call(model: Endpoint, *texts: str, **options: Any) -> list[Completion]:
    requests = [ask(text) for text in texts or ("hi",)]
    return model(requests, **({"temperature": 0.5, "max_new_tokens": 9, "seed": 1} | options))


def echo(_: int, asked: dict[str, Any]) -> Reply:
    return says(asked["messages"][-1]["content"].upper())


def test_answers_come_in_the_order_of_the_asks_with_their_tokens() -> None:
    with faulty_server(echo) as server:
        model = endpoint(server, concurrency=3)
        texts = [f"text {i}" for i in range(20)]
        generations = call(model, *texts)
    assert [generation.text for generation in generations] == [text.upper() for text in texts]
    assert generations[0] == Completion("TEXT 0", input_tokens=7, output_tokens=3)
    assert 1 <= server.most <= 3
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert len(server.requests) == 20


def test_no_asks_no_requests() -> None:
    with faulty_server(echo) as server:
        assert endpoint(server)([], temperature=0.0, max_new_tokens=1, seed=0) == []
    assert server.requests == []


def test_the_request_says_what_was_asked_for() -> None:
    with faulty_server(echo) as server:
        model = endpoint(server)
        model([ask(sample_index=0), ask(sample_index=1)], temperature=0.5, max_new_tokens=9, seed=1, schema=SCHEMA)
        call(model, temperature=0.0)
    first, second, greedy = server.requests
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m", 0.5, 9)
    assert first["messages"] == [{"role": "user", "content": "hi"}]
    assert first["response_format"]["type"] == "json_schema"
    assert first["response_format"]["json_schema"]["schema"] == SCHEMA
    assert first["seed"] != second["seed"]
    assert "response_format" not in greedy
    assert "seed" not in greedy


def test_the_same_seed_and_draw_ask_for_the_same_sample() -> None:
    with faulty_server(echo) as server:
        for seed in (1, 1, 2):
            call(endpoint(server), seed=seed)
    first, again, other = (request["seed"] for request in server.requests)
    assert first == again != other


@pytest.mark.parametrize(
    "fault",
    [
        fails(429),
        fails(429, retry_after="0"),
        fails(500),
        fails(503, "overloaded"),
        Reply(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}),
        Reply(body=b'{"choices": [{"mess'),
        Reply(body=b"\xff\xfe"),
        Reply(body=b"[]"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}'),
        Reply(body=b"all is well", headers={"Content-Type": "text/plain"}),
        Reply(body=says("half of this is lost").body, cut=True),
        Reply(cut=True, body=b"  "),
    ],
)
def test_what_passes_is_tried_again(fault: Reply) -> None:
    with faulty_server(fault, fault, echo) as server:
        assert call(endpoint(server)) == [Completion("HI", input_tokens=7, output_tokens=3)]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [Reply(slow=True), Reply(drips=True, body=says("x" * 4000).body)])
def test_an_answer_beyond_the_timeout_is_asked_for_again(fault: Reply) -> None:
    with faulty_server(fault, echo) as server:
        assert call(endpoint(server, timeout=2.0, retries=9))[0].text == "HI"
    assert len(server.requests) >= 2  # and waited for to its end, it would have been the answer


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    def in_three_seconds(*_: Any) -> Reply:
        return fails(429, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True))

    # A date has whole seconds.
    for busy, least in (
        (fails(429, retry_after="1"), 1.0),
        (fails(503, retry_after="0.3"), 0.3),
        (in_three_seconds, 1),
    ):
        with faulty_server(busy, echo) as server:
            call(endpoint(server))
        assert server.times[1] - server.times[0] >= least


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.2)
    with faulty_server(fails(500)) as server, pytest.raises(RaftError):
        call(endpoint(server, retries=3))
    pauses = [later - earlier for earlier, later in zip(server.times[:-1], server.times[1:], strict=True)]
    assert [pause >= least for pause, least in zip(pauses, (0.15, 0.3, 0.6), strict=True)] == [True] * 3


def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    hour = fails(429, "come back later", retry_after="3600")
    with faulty_server(lambda n, asked: hour if asked["messages"][0]["content"] == "a" else says("b")) as server:
        first, second = call(endpoint(server), "a", "b")
    assert first.failed == "HTTP 429: come back later"
    assert second.text == "b"
    assert len(server.requests) == 2


def test_an_ask_whose_retries_are_used_up_has_failed_and_the_others_have_not() -> None:
    def script(_: int, asked: dict[str, Any]) -> Reply:
        return fails(500, "no luck") if asked["messages"][0]["content"] == "bad" else echo(0, asked)

    with faulty_server(script) as server:
        good, bad, fine = call(endpoint(server), "good", "bad", "fine")
    assert (good.text, fine.text) == ("GOOD", "FINE")
    assert bad == Completion("", failed="HTTP 500: no luck")
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (fails(503, "overloaded"), "HTTP 503: overloaded"),
        (Reply(slow=True), r"no answer within 1 s"),
        (Reply(cut=True, body=says("x").body), "no connection: "),
        (Reply(body=b"{"), "not a chat completion: its body is not JSON"),
    ],
)
def test_where_every_ask_fails_the_call_fails(fault: Reply, why: str) -> None:
    with faulty_server(fault) as server:
        model = endpoint(server, retries=1, timeout=1.0 if fault.slow else 60.0)
        message = rf"refine\.models\.judge: {server.url} answered none of 2 requests in 2 tries each.*{why}"
        with pytest.raises(RaftError, match=message) as caught:
            call(model, "a", "b")
    assert not isinstance(caught.value, ConfigError)
    assert len(server.requests) == 4


def test_where_nobody_listens_the_call_fails() -> None:
    with faulty_server(echo) as server:
        pass
    with pytest.raises(RaftError, match="no connection: "):
        call(endpoint(server))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (fails(401, f"Incorrect API key: {KEY}"), r"refine\.models\.judge\.api_key_env: .*HTTP 401: Incorrect API key"),
        (fails(403, "not yours"), r"refine\.models\.judge\.api_key_env: .*not yours"),
        (fails(404, "The model `m` does not exist."), r"refine\.models\.judge\.model: .*HTTP 404: The model `m`"),
        (fails(400, "bad role"), r"refine\.models\.judge: .*HTTP 400: bad role"),
        (Reply(404, b'{"detail": "Not Found"}'), "HTTP 404: Not Found"),
        (fails(429, "pay first", code="insufficient_quota"), "HTTP 429: pay first"),
    ],
)
def test_what_trying_again_cannot_mend_fails_at_once_without_the_key(
    fault: Reply, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with faulty_server(fault) as server, pytest.raises(ConfigError, match=message) as caught:
        call(endpoint(server, concurrency=1), *"abcdefgh")
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value) + caplog.text


def test_a_chat_that_outgrows_the_context_is_too_long() -> None:
    words = "This model's maximum context length is 512 tokens. However, you requested 600."
    with faulty_server(fails(400, words)) as server:
        assert call(endpoint(server), "a", "b") == [Completion("", too_long=True)] * 2
    assert len(server.requests) == 2


def test_what_a_content_filter_refuses_is_a_failure_of_that_ask_alone() -> None:
    replies = (fails(400, "filtered", code="content_filter"), says("half", finish_reason="content_filter"))
    with faulty_server(*replies) as server:
        first, second = call(endpoint(server, concurrency=1), "a", "b")
    assert (first.failed, second.failed) == ("HTTP 400: filtered", "the model declined: content filter")
    assert (first.text, second.text) == ("", "")


def test_an_answer_that_the_token_limit_ends_is_truncated() -> None:
    with faulty_server(says("half", finish_reason="length"), says(None, finish_reason="length")) as server:
        model = endpoint(server)
        assert call(model)[0] == Completion("half", truncated=True, input_tokens=7, output_tokens=3)
        assert call(model)[0] == Completion("", truncated=True, input_tokens=7, output_tokens=3)


@pytest.mark.parametrize(
    ("parameter", "fault"),
    [
        ("response_format", fails(400, "response_format of type json_schema is not supported")),
        ("response_format", fails(400, "unknown", param="response_format.type")),
        ("seed", fails(422, "Extra inputs are not permitted: 'seed'")),
        ("temperature", fails(400, "Only the default (1) value is supported.", param="temperature")),
        ("max_tokens", fails(400, "Use 'max_completion_tokens' instead.", param="max_tokens")),
    ],
)
def test_a_parameter_that_a_server_does_not_take_is_left_out_and_told_once(
    parameter: str, fault: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    with faulty_server(lambda _, asked: fault if parameter in asked else says("{}")) as server:
        model = endpoint(server)
        for _ in range(2):
            assert call(model, *"abc", schema=SCHEMA)[0].text == "{}"
    assert sum(parameter in request for request in server.requests) == 3
    assert sum(parameter not in request for request in server.requests) == 6
    assert ("max_completion_tokens" in server.requests[-1]) == (parameter == "max_tokens")
    (told,) = [record.message for record in caplog.records if record.name == "raft_ray.refine.endpoint"]
    assert told.startswith(f"refine.models.judge: {server.url} does not take {parameter}")


def test_words_of_a_refusal_that_are_no_parameter_of_the_request_do_not_change_it() -> None:
    words = "the text about temperature and seed is bad"
    with faulty_server(fails(400, words)) as server, pytest.raises(ConfigError, match=words):
        call(endpoint(server))
    assert len(server.requests) == 1


def test_the_key_is_in_neither_identity_nor_pickle() -> None:
    with faulty_server(echo) as server:
        model = endpoint(server)
        call(model)
    assert model.identity == f"{server.url} m"
    assert KEY.encode() not in pickle.dumps(model)


def test_without_a_named_key_a_placeholder_goes_along() -> None:
    with faulty_server(echo) as server:
        call(endpoint(server, api_key_env=None))
    assert server.keys == ["Bearer none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"api_key_env": "NOT_SET_ANYWHERE"}, r"refine\.models\.judge\.api_key_env: .*NOT_SET_ANYWHERE is not set"),
        ({"base_url": None}, r"refine\.models\.judge\.base_url=None: must be an address"),
        ({"base_url": "localhost:8000"}, r"refine\.models\.judge\.base_url=localhost:8000: must be an address"),
        ({"base_url": "http://me:sesame@host/v1"}, r"refine\.models\.judge\.base_url: must hold no user"),
        ({"model": None}, r"refine\.models\.judge\.model: not set"),
        ({"concurrency": 0}, r"refine\.models\.judge\.concurrency=0: must be at least 1"),
        ({"retries": -1}, r"refine\.models\.judge\.retries=-1: must be at least 0"),
        ({"timeout": 0.0}, r"refine\.models\.judge\.timeout=0\.0: must be more than 0"),
    ],
)
def test_a_config_that_cannot_work_names_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Endpoint("judge", config(**changes))
    assert "sesame" not in str(caught.value)


def test_a_key_that_cannot_be_one_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nx")
    with pytest.raises(ConfigError, match=r"api_key_env: JUDGE_KEY holds characters") as caught:
        Endpoint("judge", config())
    assert KEY not in str(caught.value)
