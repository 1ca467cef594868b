"""A web server for one report, on this machine's loopback only: for a report that is a folder, or for a look from an
editor or a notebook. Opening the page from the disk does the same."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sae_tools.errors import UserError

LOOPBACK = "127.0.0.1"
PAGE, DATA = "text/html; charset=utf-8", "text/javascript; charset=utf-8"


def open_server(page: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server that listens already and answers once `serve_forever` is called; `server_address` has its port.

    page: a report, or the index.html of one that is a folder. port: 0 takes a free one. Raises UserError where the port
    is taken or not allowed.
    """
    try:
        return Server((LOOPBACK, port), partial(Handler, places=places(page)))
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--port: no server can listen on {LOOPBACK}:{port} ({said}).") from None


def serve(page: Path, port: int = 0, say: Callable[[str], None] = print) -> None:
    """Serve until Ctrl-C; `say` gets the address first."""
    with open_server(page, port) as server:
        try:
            say(f"Serving {page} at {address(server)} until Ctrl-C.")
            server.serve_forever()
        except KeyboardInterrupt:
            say("Stopped.")


def address(server: ThreadingHTTPServer) -> str:
    return f"http://{LOOPBACK}:{server.server_address[1]}/"


def places(page: Path) -> dict[str, Path]:
    """What is served, by the path in its address: the page, and the data beside it if the report is a folder.

    A list, looked up as it is, so that no address leads anywhere else; links are not followed.
    """
    found = {"/": page, f"/{page.name}": page}
    data = page.parent / "data"
    if page.name == "index.html" and not data.is_symlink():
        found |= {f"/data/{path.name}": path for path in data.glob("*.js") if path.is_file() and not path.is_symlink()}
    return found


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is nothing to speak of; the rest is printed, as it is by default."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for what is in `places`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, places: dict[str, Path], **kwargs):
        self.places = places
        super().__init__(*args, **kwargs)  # answers the request

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (LOOPBACK, "localhost"):  # a page elsewhere whose name was made to lead here
            self.refuse(HTTPStatus.FORBIDDEN)
            return
        path = self.places.get(unquote(urlsplit(self.path).path))
        if path is None:
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed below)
        except OSError:
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        with file:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", DATA if path.parent != self.places["/"].parent else PAGE)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if body:
                shutil.copyfileobj(file, self.wfile)

    def refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """No line per request."""
