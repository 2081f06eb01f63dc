"""A chat completions server on this machine that fails in every way that servers do."""

import base64
import collections
import dataclasses
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclasses.dataclass
class Reply:
    """What to do with one request; `status` 0 drops the connection."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    delay: float = 0.0


@dataclasses.dataclass
class Asked:
    """One request as it came."""

    time: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    image: str  # digest of its bytes


def answer(text: str, finish_reason: str = "stop") -> Reply:
    """A completion as servers give it."""
    message = {"role": "assistant", "content": text}
    return Reply(body={"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


def describe(asked: Asked) -> Reply:
    """The same words for the same image and seed."""
    return answer(f"A picture called {asked.image} drawn {asked.body.get('seed', 'first')}.")


@dataclasses.dataclass
class Endpoint:
    """The running server: what came in, and what `reply` (asked, how often for this image) does with it."""

    reply: Callable[[Asked, int], Reply] = lambda asked, _: describe(asked)
    models: Reply = dataclasses.field(default_factory=lambda: Reply(body={"data": [{"id": "vlm"}]}))
    asked: list[Asked] = dataclasses.field(default_factory=list)
    most_at_once: int = 0
    base: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        self._times: collections.Counter[str] = collections.Counter()

    @contextmanager
    def counted(self, asked: Asked) -> Iterator[int]:
        with self._lock:
            self.asked.append(asked)
            self._times[asked.image] += 1
            times = self._times[asked.image]
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield times
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve `endpoint` on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(endpoint.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(time.monotonic(), self.path, dict(self.headers), body, digest(body))
            with endpoint.counted(asked) as times:
                reply = endpoint.reply(asked, times)
                time.sleep(reply.delay)
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            if reply.status == 0:
                self.close_connection = True
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # whoever asked was killed

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint.base = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def image_bytes(body: dict[str, Any]) -> bytes:
    """The encoded image of a request."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(url.partition(";base64,")[2])


def image_of(body: dict[str, Any]) -> Image.Image:
    """The decoded image of a request."""
    return Image.open(io.BytesIO(image_bytes(body)))


def digest(body: dict[str, Any]) -> str:
    """A short name of the image of a request."""
    return hashlib.blake2b(image_bytes(body), digest_size=6).hexdigest()
