"""The server: on loopback only, and only what belongs to the report."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sae_tools.errors import UserError
from sae_tools.report.serve import address, open_server
from sae_tools.report.write import write_report
from tests.report.synthetic import synthetic_contents


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory) -> Path:
    """A report as a folder, with things beside it and in it that are nobody's business."""
    above = tmp_path_factory.mktemp("served")
    page = write_report(synthetic_contents([run], sharded=True), above / "report")
    (above / "secret.js").write_text("secret")
    (page.parent / "notes.txt").write_text("secret")
    (page.parent / "data" / "link.js").symlink_to(above / "secret.js")
    return page.parent


@pytest.fixture
def get(request):
    """Starts a server for the page and asks it: get(page) → ask(path, method, headers) → (status, headers, body)."""
    servers = []

    def start(page: Path):
        server = open_server(page)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path: str, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host or f"127.0.0.1:{server.server_address[1]}")
            connection.endheaders()
            response = connection.getresponse()
            answer = response.status, dict(response.headers), response.read()
            connection.close()
            return answer

        return ask

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_folder_is_served_with_its_data(folder: Path, get):
    ask = get(folder / "index.html")
    for path in ("/", "/index.html", "/?x=1"):
        status, headers, body = ask(path)
        assert status == 200 and body == (folder / "index.html").read_bytes()
        assert headers["Content-Type"].startswith("text/html") and headers["X-Content-Type-Options"] == "nosniff"
    status, headers, body = ask("/data/features-mlp_acts-0.js")
    assert status == 200 and body == (folder / "data" / "features-mlp_acts-0.js").read_bytes()
    assert headers["Content-Type"].startswith("text/javascript")
    status, headers, body = ask("/", "HEAD")
    assert status == 200 and body == b"" and int(headers["Content-Length"]) == (folder / "index.html").stat().st_size


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.js", "/data/../../secret.js", "/data/%2e%2e/%2e%2e/secret.js", "/data/..%2f..%2fsecret.js",
        "//etc/passwd", "/etc/passwd", "/notes.txt", "/data/link.js", "/data/", "/data", "/%00", "/data/..\\secret.js",
    ],
)  # fmt: skip
def test_nothing_else_is(folder: Path, get, path: str):
    status, _, body = get(folder / "index.html")(path)
    assert status == 404 and body == b""


def test_one_file_is_served_alone(page: Path, get):
    (page.parent / "beside.js").write_text("secret")
    ask = get(page)
    assert ask("/")[2] == ask("/report.html")[2] == page.read_bytes()
    assert ask("/beside.js")[0] == 404 and ask("/index.html")[0] == 404
    assert ask("/", "POST")[0] == 501


def test_a_page_may_have_any_name(page: Path, get, tmp_path: Path):
    for name in ("features", "features.htm"):
        (tmp_path / name).write_bytes(page.read_bytes())
        status, headers, body = get(tmp_path / name)("/")
        assert status == 200 and body == page.read_bytes() and headers["Content-Type"].startswith("text/html")


def test_data_that_are_a_link_to_another_folder_are_not_served(page: Path, get, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.js").write_text("secret")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_bytes(page.read_bytes())
    (tmp_path / "report" / "data").symlink_to(tmp_path / "elsewhere")
    assert get(tmp_path / "report" / "index.html")("/data/secret.js")[0] == 404


def test_other_hosts_names_are_refused(page: Path, get):
    """A page in the same browser whose name was made to resolve to 127.0.0.1 cannot read the report."""
    ask = get(page)
    assert ask("/", host="evil.example")[0] == 403 and ask("/", host="evil.example:80")[0] == 403
    assert ask("/", host="localhost:8000")[0] == 200


def test_only_loopback_listens(page: Path):
    with open_server(page) as server:
        assert server.server_address[0] == "127.0.0.1" and address(server).startswith("http://127.0.0.1:")
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
        for other in others:
            with pytest.raises(OSError), socket.create_connection((str(other), server.server_address[1]), timeout=2):
                pass


def test_a_port_that_is_taken_is_said(page: Path):
    with open_server(page) as server, pytest.raises(UserError, match="--port: no server can listen"):
        open_server(page, server.server_address[1])


def test_ctrl_c_ends_it(page: Path):
    command = [sys.executable, "-m", "sae_tools.cli.report", str(page), "--serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"Serving {page} at http://127.0.0.1:" in line
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and "Stopped." in out and err == ""
    finally:
        process.kill()


def test_serving_a_report_that_is_there_loads_nothing_heavy(page: Path):
    code = f"""
import sys
import sae_tools.report.serve as server
server.serve = lambda *a, **k: print("torch" in sys.modules)
sys.argv = ["sae-report", {str(page)!r}, "--serve"]
from sae_tools.cli.report import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
