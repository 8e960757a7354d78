"""A site on this machine alone: files for the browser here, and answers that the model computes for this page only.

Bound to loopback. What other sites could send by way of the browser is refused: the Host has to be this server's name
(so that no other name can be pointed here), requests from other origins get nothing, and what costs compute needs a key
that is made anew each time and is known to whoever was told the address.
"""

import contextlib
import json
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hubsae.dashboard.build import LIVE, Dashboard
from hubsae.dashboard.shards import script
from hubsae.errors import ConfigError, HubsaeError
from hubsae.settings import as_type

Action = Callable[[dict], dict]
LOOPBACK = "127.0.0.1"
_MAX_QUESTION = 1 << 16  # bytes
_OPEN = "/open/"
_MAX_WAITING = 4
_PATIENCE_S = 600
_KEPT_FILES = 32
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types hubsae"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@contextlib.contextmanager
def _port_errors(port: int) -> Iterator[None]:
    """Context in which a port is bound; `ConfigError` for what is no port, or one that is taken."""
    if not 0 <= as_type(port, int, "port") < 65536:
        raise ConfigError(f"port={port}: expected 0 (any free one) to 65535")
    try:
        yield
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error}); give another one, or 0 for any free one") from error


def check_port(port: int) -> None:
    """Raise `ConfigError` for what is no port, or one that is taken."""
    with _port_errors(port), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))


class LocalServer:
    """A dashboard served on 127.0.0.1; `run` answers until it is interrupted, on the thread that called it.

    actions: name -> function of a question; models compute on the thread that runs them, which is why `run` stays.
    port 0 takes a free one. Raises `ConfigError` where the port is taken.
    """

    def __init__(self, dashboard: Dashboard, port: int = 8080, actions: Mapping[str, Action] | None = None):
        self.dashboard, self.actions = dashboard, dict(actions or {})
        self.token = secrets.token_urlsafe(32)
        self._ticket: str | None = None
        self._made = lru_cache(_KEPT_FILES)(lambda path: dashboard.files[path]())
        self._jobs: queue.Queue[tuple[Action, dict, Future] | None] = queue.Queue()
        with _port_errors(port):
            self._http = _Http((LOOPBACK, port), _Handler)
        self._http.owner = self
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it is, with the key for what costs compute, if anything does."""
        return f"http://{LOOPBACK}:{self.port}/" + (f"#token={self.token}" if self.actions else "")

    def ticket(self) -> str:
        """An address for the browser that gives the key once: command lines of programs are seen by other users."""
        if not self.actions:
            return self.address
        self._ticket = secrets.token_urlsafe(32)
        return f"http://{LOOPBACK}:{self.port}{_OPEN}{self._ticket}"

    def redeem(self, ticket: str) -> bool:
        """Whether a ticket is good; only the first time."""
        known, self._ticket = self._ticket, None
        if known is None or not secrets.compare_digest(known.encode(), ticket.encode()):
            self._ticket = known
            return False
        return True

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names that a browser here calls it by."""
        return f"{LOOPBACK}:{self.port}", f"localhost:{self.port}"

    def run(self) -> None:
        """Answer questions, one after the other, until Ctrl+C or `close`."""
        try:
            while job := self._jobs.get():
                _carry_out(*job)
        except KeyboardInterrupt:
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Stop answering."""
        self._jobs.put(None)
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, name: str, question: dict) -> dict:
        """What an action makes of a question, computed by `run`; `ConfigError` when too many wait."""
        if self._jobs.qsize() >= _MAX_WAITING:
            raise ConfigError("the model is busy with other questions; ask again in a moment")
        found: Future = Future()
        self._jobs.put((self.actions[name], question, found))
        return found.result(_PATIENCE_S)

    def read(self, path: str) -> bytes:
        """A file of the site; the part that says what can be computed is this server's own."""
        if path == LIVE and self.actions:
            return script("live", self.actions["about"]({}))
        return self._made(path)


def _carry_out(action: Action, question: dict, answer: Future) -> None:
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(action(question))
    except KeyboardInterrupt:
        answer.set_exception(ConfigError("the server was stopped"))
        raise
    except Exception as error:
        answer.set_exception(error)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: LocalServer

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]  # without asking for a name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""


class _Refused(Exception):
    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


class _Moved(Exception):
    """The answer is elsewhere."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hubsae", ""
    timeout = 30
    server: _Http  # type: ignore[assignment]

    def do_GET(self) -> None:
        self._reply(self._file)

    def do_HEAD(self) -> None:
        self._reply(self._file)

    def do_POST(self) -> None:
        self._reply(self._answer)

    def _reply(self, make: Callable[[], tuple[bytes, str]]) -> None:
        headers = {}
        try:
            self._check_host()
            content, kind = make()
            status = 200
        except _Moved as moved:
            status, (content, kind), headers = 303, (b"", "text/plain"), {"Location": str(moved)}
        except _Refused as refused:
            status, (content, kind) = refused.status, _problem(str(refused))
        except HubsaeError as error:
            status, (content, kind) = 400, _problem(str(error))
        except Exception as error:
            status, (content, kind) = 500, _problem(f"hubsae failed: {type(error).__name__}: {error}")
        self._send(status, content, kind, headers)

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.close_connection |= status != 200  # what was sent with it may not have been read
        self.send_response(status)
        own = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}
        for name, value in own.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What cannot be understood as a request is refused like everything else."""
        self._send(code, *_problem(message or "this is no request that is answered here"))

    def _check_host(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or (self.command != "POST" and length != "0"):
            self.close_connection = True
            raise _Refused(400, "no body is taken here")
        if self.headers.get_all("Host") not in [[host] for host in self.server.owner.hosts]:
            raise _Refused(403, "this server answers to its own address alone")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        page = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.headers.get("Sec-Fetch-Dest") == "document"
        if site not in ("same-origin", "none") and not page:
            raise _Refused(403, "other sites get nothing from here")

    def _file(self) -> tuple[bytes, str]:
        path = self.path.split("?")[0].removeprefix("/") or "index.html"
        owner = self.server.owner
        if self.path.startswith(_OPEN) and self.command == "GET" and owner.redeem(self.path.removeprefix(_OPEN)):
            raise _Moved(f"/#token={owner.token}")
        if path not in owner.dashboard.files:
            raise _Refused(404, "there is no such file")
        return owner.read(path), _TYPES[path.rsplit(".", 1)[-1]]

    def _answer(self) -> tuple[bytes, str]:
        owner = self.server.owner
        name = self.path.removeprefix("/api/")
        origins = [f"http://{host}" for host in owner.hosts]
        if self.headers.get("Origin") not in origins:
            raise _Refused(403, "questions are taken from this server's own pages alone")
        if not secrets.compare_digest(self.headers.get("X-Hubsae-Token", "").encode(), owner.token.encode()):
            raise _Refused(403, "this page has no valid key: open the address that hubsae printed when it started")
        if name not in owner.actions or not self.path.startswith("/api/"):
            raise _Refused(404, "there is no such question")
        answer = json.dumps(owner.answer(name, self._question()), allow_nan=False)
        return answer.encode(), "application/json"

    def _question(self) -> dict:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "questions are JSON")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 9) or int(length) > _MAX_QUESTION:
            raise _Refused(413, f"a question has at most {_MAX_QUESTION:,} bytes")
        try:
            question = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _Refused(400, "this is no JSON") from error
        if not isinstance(question, dict):
            raise _Refused(400, "a question is a JSON object")
        return question

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed for a request."""


def _problem(why: str) -> tuple[bytes, str]:
    return json.dumps({"error": why}).encode(), "application/json"
