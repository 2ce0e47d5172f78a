"""A chat endpoint that goes wrong by script: what `raft_ray.refine.endpoint` is tested against."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    slow: bool = False
    """Waits for the server's end before it answers: beyond every time-out."""
    drips: bool = False
    """Sends its body a byte at a time, so that no single read takes long."""
    cut: bool = False
    """Closes the connection in the middle of the body."""


Script = Callable[[int, dict[str, Any]], Reply]
"""The reply to a request, by its number (from 0) and its JSON body."""


def says(text: str | None, **more: Any) -> Reply:
    """A chat completion; `more` goes into the choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return Reply(body=json.dumps(body).encode())


def fails(status: int, message: str = "no", *, retry_after: str | None = None, **more: Any) -> Reply:
    """An error in the form that OpenAI gives it; `more` goes beside the message."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Reply(status, json.dumps({"error": {"message": message} | more}).encode(), headers)


class FaultyServer:
    """Serves `script` on loopback, and keeps what it was asked.

    Attributes:
        url: what `base_url` is to be.
        requests: the JSON body of each request.
        keys: the `Authorization` header of each request.
        times: when each arrived, `time.monotonic` seconds.
        most: how many it had at the same time, at most.
    """

    def __init__(self, script: Script) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.most = 0
        self._now = 0
        self._script = script
        self._lock = threading.Lock()
        self.over = threading.Event()
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                faulty._answer(self)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(asked)
            self.keys.append(handler.headers["Authorization"])
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self._send(handler, self._script(number, asked))
        except OSError:
            handler.close_connection = True  # the client has gone
        finally:
            with self._lock:
                self._now -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.slow:
            self.over.wait()
        handler.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        if reply.drips:
            for byte in reply.body:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                if self.over.wait(0.05):
                    break
        else:
            handler.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
        handler.close_connection = reply.cut or handler.close_connection


@contextmanager
def faulty_server(*replies: Reply | Script) -> Iterator[FaultyServer]:
    """A server that gives `replies` one after the other, the last one for ever; or one function of number and body."""

    def script(number: int, asked: dict[str, Any]) -> Reply:
        reply = replies[min(number, len(replies) - 1)]
        return reply(number, asked) if callable(reply) else reply

    faulty = FaultyServer(script)
    thread = threading.Thread(target=faulty.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield faulty
    finally:
        faulty.over.set()
        faulty.server.shutdown()
        faulty.server.server_close()
        thread.join()
