"""An endpoint that misbehaves: a server of the tests' own answers each request as its script says."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raft_ray.config import RefineModelConfig
from raft_ray.errors import ConfigError, RaftError
from raft_ray.refine.endpoint import Endpoint
from raft_ray.refine.generation import Ask

KEY = "sk-secret-0123456789"


def reply(text: Any = "Au", finish: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [message],
        "usage": usage,
    } | more


class Server:
    """Answers request number n with `script[n]`, and what follows its end with the last one."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append({**body, "key": request.headers["Authorization"]})
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        does = self.script[min(number, len(self.script) - 1)]
        try:
            if callable(does):
                does = does(request)
            status, headers, content = does if isinstance(does, tuple) else (200, {}, does)
            if content is None:
                return  # closed without a word
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            request.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
                request.send_header(name, str(value))
            request.end_headers()
            request.wfile.write(data)
        except BrokenPipeError:
            pass  # the client had waited long enough
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(*script: Any) -> Server:
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server: Server, count: int = 1, schema: dict[str, Any] | None = None, **changes: Any) -> list[Any]:
    keys: dict[str, Any] = {"base_url": server.url, "model": "m", "timeout": 5.0, "retries": 2} | changes
    endpoint = Endpoint("far", RefineModelConfig(**keys))
    asks = [Ask([{"role": "user", "content": f"q{number}"}], number) for number in range(count)]
    return endpoint(asks, temperature=0.5, max_new_tokens=9, seed=40, schema=schema)


def busy(after: str = "0.01") -> tuple[int, dict[str, str], dict[str, Any]]:
    return 429, {"Retry-After": after}, {"error": {"message": "too many requests"}}


BROKEN = (500, {}, {"error": {"message": "oops"}})


def test_an_answer_with_its_tokens_and_what_was_sent(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    server = serve(reply("Au", "length"))
    (made,) = ask(server, api_key_env="FAR_KEY")
    assert (made.text, made.truncated, made.failed) == ("Au", True, None)
    assert (made.input_tokens, made.output_tokens) == (5, 2)
    (sent,) = server.requests
    assert sent["key"] == f"Bearer {KEY}"
    assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["seed"]) == ("m", 0.5, 9, 40)
    assert "response_format" not in sent


def test_after_429_and_500_it_tries_again_as_the_server_asks(serve: Callable[..., Server]) -> None:
    server = serve(busy("1"), BROKEN, reply())
    assert ask(server)[0].text == "Au"
    assert len(server.requests) == 3
    assert server.times[1] - server.times[0] >= 1.0


def test_a_cut_connection_and_a_slow_answer_are_tried_again(serve: Callable[..., Server]) -> None:
    def slow(_: Any) -> dict[str, Any]:
        time.sleep(1.0)
        return reply("late")

    server = serve((200, {}, None), slow, reply())
    assert ask(server, timeout=0.3)[0].text == "Au"
    assert len(server.requests) == 3


def test_one_whose_retries_are_used_up_is_failed_and_the_others_are_not(serve: Callable[..., Server]) -> None:
    def second_is_down(request: Any) -> Any:
        return BROKEN if server.requests[-1]["messages"][0]["content"] == "q1" else reply()

    server = serve(second_is_down)
    first, second, third = ask(server, count=3, concurrency=1, retries=1)
    assert (first.text, third.text) == ("Au", "Au")
    assert second.failed
    assert "oops" in second.failed
    assert len(server.requests) == 4


def test_when_nothing_is_answered_the_run_ends_with_the_reason(serve: Callable[..., Server]) -> None:
    server = serve(busy())
    with pytest.raises(RaftError, match=r"refine\.models\.far: none of 2 requests .*after 1 retries.*too many"):
        ask(server, count=2, retries=1)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "not JSON|no choices|no text"),
        (b'{"choices": [', "not JSON|no choices|no text"),
        (reply(choices=[]), "no choices"),
        (reply(None), "no text"),
    ],
)
def test_a_malformed_reply_is_failed(serve: Callable[..., Server], content: Any, reason: str) -> None:
    server = serve((200, {}, content), reply())
    made = ask(server, count=2, concurrency=1, retries=0)
    assert [bool(generation.failed) for generation in made] == [True, False]
    assert any(part in made[0].failed for part in reason.split("|"))


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_no_retry_mends_ends_the_run_at_once_without_the_key(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    server = serve((status, {}, {"error": {"message": f"wrong: {KEY}"}}))
    with pytest.raises(ConfigError, match=r"refine\.models\.far: .* refuses: .*wrong") as caught:
        ask(server, api_key_env="FAR_KEY")
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_no_more_requests_at_once_than_allowed(serve: Callable[..., Server]) -> None:
    def takes_time(_: Any) -> dict[str, Any]:
        time.sleep(0.05)
        return reply()

    server = serve(takes_time)
    assert len(ask(server, count=12, concurrency=3)) == 12
    assert server.most <= 3
    assert {request["seed"] for request in server.requests} == set(range(40, 52))


def test_a_schema_is_sent_and_a_server_that_takes_none_is_asked_without(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    schema = {"type": "object"}
    server = serve(reply("{}"))
    ask(server, schema=schema)
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == schema
    refusal = (400, {}, {"error": {"message": "response_format is not supported"}})
    server = serve(refusal, reply("{}"))
    with caplog.at_level(logging.WARNING):
        made = ask(server, count=2, concurrency=1, schema=schema)
    assert [generation.text for generation in made] == ["{}", "{}"]
    assert ["response_format" in request for request in server.requests] == [True, False, False]
    assert caplog.text.count("takes no response_format") == 1


def test_a_key_that_is_not_there_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"refine\.models\.far\.api_key_env=FAR_KEY: .*not set"):
        Endpoint("far", RefineModelConfig(base_url="http://h/v1", model="m", api_key_env="FAR_KEY"))
