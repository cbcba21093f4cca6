"""A language model's service on the loopback: it answers as the API does, and fails as it does."""

import contextlib
import dataclasses
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator

Reply = tuple[int, dict[str, str], bytes]


@dataclasses.dataclass
class Service:
    """What was received and answered.

    Attributes:
      reply: (number of the request, its body) -> another reply; status 0 hangs up without one.
      seconds: that a proper answer takes.
      busiest: the most requests at a time.
    """

    url: str = ""
    key: str = "right"
    reply: Callable[[int, dict], Reply | None] = lambda number, body: None
    seconds: float = 0.0
    received: list[dict] = dataclasses.field(default_factory=list)
    answered: list[str] = dataclasses.field(default_factory=list)
    busiest: int = 0
    busy: int = 0

    def respond(self, number: int, body: dict, authorization: str) -> Reply:
        if authorization != f"Bearer {self.key}":
            return 401, {}, b'{"error": {"message": "Incorrect API key provided"}}'
        time.sleep(self.seconds)
        if (reply := self.reply(number, body)) is not None:
            return reply
        self.answered.append(f"{body['messages'][0]['content']} {body['seed']}")
        return 200, {}, completion(f'Sure:\n\n"{rewritten(body)}"')


def rewritten(body: dict) -> str:
    """A text that depends on the caption and the seed: the same for the same request."""
    caption = body["messages"][0]["content"].splitlines()[-1].removesuffix(" =>")
    return f"{caption} said in way {body['seed'] % 1009}"


def completion(text: str | None) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextlib.contextmanager
def serving() -> Iterator[Service]:
    service, lock = Service(), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                service.received.append(body)
                number = len(service.received)
                service.busy += 1
                service.busiest = max(service.busiest, service.busy)
            authorization = self.headers.get("Authorization", "")
            status, headers, content = service.respond(number, body, authorization)
            with lock:
                service.busy -= 1
            self.close_connection = not status
            if not status:
                return
            with contextlib.suppress(OSError):  # whoever asked may be gone
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads, block_on_close, request_queue_size = True, False, 64

        def handle_error(self, *arguments: object) -> None:
            pass  # a client that was killed

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        service.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield service
        server.shutdown()
