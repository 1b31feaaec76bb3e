"""An OpenAI-compatible server on loopback that answers as told, and misbehaves as told."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("hang", "429", "500", "half_json", "half_body", "wrong_type", "huge", "closed", "cut", "empty")


class FakeServer(ThreadingHTTPServer):
    """`answer(request)` gives a reply's text, `fault(request)` the name of what goes wrong, or None.

    `injected` counts what went wrong, `served` what went well; `requests` holds all bodies received;
    `most_at_once` is the largest number of requests under way together.
    """

    daemon_threads, block_on_close, request_queue_size = True, False, 512

    def __init__(
        self,
        answer: Callable[[dict], str],
        fault: Callable[[dict], str | None] = lambda request: None,
        takes_schema: bool = True,
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.fault, self.takes_schema = answer, fault, takes_schema
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.injected: Counter[str] = Counter()
        self.served = self.at_once = self.most_at_once = 0
        self.requests: list[dict] = []
        self.retry_after = "0"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> FakeServer:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are part of the game."""


class Handler(BaseHTTPRequestHandler):
    """One request after another on one connection."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: FakeServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(request)
            refused = "response_format" in request and not server.takes_schema
            fault = "400" if refused else server.fault(request)
            server.injected.update([fault] if fault else [])
            server.served += fault is None
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self.misbehave(fault, request) if fault else self.send(200, completion(server.answer(request)))
        finally:
            with server.lock:
                server.at_once -= 1

    def misbehave(self, fault: str, request: dict) -> None:
        right = self.server.answer(request)
        if fault == "hang":
            self.server.closing.wait(60)
            self.close_connection = True
        elif fault in ("closed", "cut"):
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(completion(right)[:20])
                self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif fault.isdigit():
            wait = {"Retry-After": self.server.retry_after} if fault == "429" else {}
            self.send(int(fault), b'{"error": {"message": "no"}}', **wait)
        else:
            self.send(
                200,
                {
                    "half_json": lambda: completion(right[: len(right) // 2]),
                    "half_body": lambda: completion(right)[:-9],
                    "wrong_type": lambda: completion(json.dumps({key: [1] for key in json.loads(right)})),
                    "huge": lambda: HUGE,
                    "empty": lambda: completion(" "),
                }[fault](),
            )

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Silence."""


def completion(text: str) -> bytes:
    """A chat completion's body."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({"id": "x", "object": "chat.completion", "choices": choices}).encode()


HUGE = completion("x" * 10_000_000)
