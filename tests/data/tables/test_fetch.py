import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data.tables import fetch as module
from data.tables.fetch import cache_dir, fetch
from data.tables.sources import read_table
from pipeline.config.data import TableConfig
from pipeline.errors import DataError

CONTENT = b"a,b\n1,2\n"
HASH = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    content = CONTENT
    status = 200
    declared: int | None = None
    requests = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.declared or len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def url(server, name="t.csv", sha256=HASH):
    return f"http://127.0.0.1:{server.server_port}/some/{name}#sha256={sha256}"


def files():
    return [path for path in cache_dir().rglob("*") if path.is_file()]


def test_a_file_is_fetched_once(server):
    messages = []
    path = fetch(url(server), messages.append)
    assert path.read_bytes() == CONTENT
    assert path.name == "t.csv"
    assert fetch(url(server), messages.append) == path
    assert server.requests == 1
    assert len(messages) == 1
    assert "t.csv" in messages[0]
    assert files() == [path]


def test_tables_are_read_from_the_cache(server):
    assert list(read_table(TableConfig(path=url(server)))) == [{"a": "1", "b": "2"}]


def test_a_wrong_hash_is_refused_and_leaves_no_file(server):
    with pytest.raises(DataError, match="not the one expected") as caught:
        fetch(url(server, sha256="0" * 64))
    assert HASH in str(caught.value)
    assert files() == []


def test_a_damaged_copy_is_fetched_again(server):
    path = fetch(url(server))
    path.write_bytes(b"damaged")
    assert fetch(url(server)).read_bytes() == CONTENT
    assert server.requests == 2


def test_an_interrupted_transfer_leaves_no_file(server):
    server.declared = len(CONTENT) + 5
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(url(server))
    assert files() == []


def test_an_http_error_names_the_url(server):
    server.status = 404
    with pytest.raises(DataError, match="404") as caught:
        fetch(url(server))
    assert "some/t.csv" in str(caught.value)
    assert files() == []


def test_a_missing_network_is_an_error_with_a_hint(server):
    address = url(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="cannot be fetched") as caught:
        fetch(address)
    assert "t.csv" in caught.value.hint


def test_an_unwritable_cache_is_an_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(url(server))


def test_plain_http_needs_a_hash(server):
    with pytest.raises(DataError, match="plain http"):
        fetch(url(server).partition("#")[0])
    assert server.requests == 0


@pytest.mark.parametrize("fragment", ["sha256=abc", "md5=" + "0" * 64, "row"])
def test_a_malformed_hash_is_refused(fragment):
    with pytest.raises(DataError, match="is not a hash"):
        fetch(f"https://example.org/t.csv#{fragment}")


def test_without_a_hash_the_first_copy_is_kept(server, monkeypatch):
    address = "https://example.org/t.csv"
    real = module.urlopen
    monkeypatch.setattr(module, "urlopen", lambda request, timeout: real(url(server), timeout=timeout))
    path = fetch(address)
    server.content = b"other"
    assert fetch(address).read_bytes() == CONTENT
    assert path.read_bytes() == CONTENT
    assert server.requests == 1
