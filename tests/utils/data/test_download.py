"""Downloads from a local server: whole, resumed, damaged, refused."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils.data.download import fetch
from utils.errors import UserError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        server.asked.append(start)
        if self.path != "/data.bin":
            return self.send_error(404)
        if server.page is not None:
            self.send_response(200)
            if server.says_length:
                self.send_header("Content-Length", str(len(server.page)))
            self.end_headers()
            return self.wfile.write(server.page)
        if not server.ranges:
            start = 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : server.breaks_at or None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.ranges, server.breaks_at = [], True, 0
    server.page, server.says_length = None, True  # what is sent instead of the file
    server.url = f"http://127.0.0.1:{server.server_port}/data.bin"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_fetched_once_and_verified(server, tmp_path):
    for _ in range(2):
        path = fetch(server.url, tmp_path / "new", SHA256)
        assert path.read_bytes() == CONTENT and path.name == "data.bin"
    assert server.asked == [0]
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]


def test_a_broken_download_goes_on_where_it_ended(server, tmp_path):
    server.breaks_at = 300_000
    with pytest.raises(UserError, match=r"data.bin.*goes on after 2\d{5} bytes"):
        fetch(server.url, tmp_path, SHA256)
    kept = (tmp_path / "data.bin.part").stat().st_size
    assert 280_000 < kept < 300_000
    server.breaks_at = 0
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.asked == [0, kept]


def test_a_server_that_knows_no_ranges_starts_anew(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize("page", [b"<html>Log in</html>", b"x" * 900_000], ids=["short", "long"])
def test_a_log_in_page_does_not_cost_what_has_come(page, says_length, server, tmp_path):
    part = tmp_path / "data.bin.part"
    part.write_bytes(CONTENT[:800_000])
    server.page, server.says_length = page, says_length
    with pytest.raises(UserError, match="data.bin.*(log-in page|checksum)"):
        fetch(server.url, tmp_path, SHA256)
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
    assert part.read_bytes() == CONTENT[:800_000]
    server.page = None
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert server.asked == [800_000, 800_000]
    assert not part.exists()


def test_a_break_without_ranges_keeps_the_longer_beginning(server, tmp_path):
    part = tmp_path / "data.bin.part"
    part.write_bytes(CONTENT[:800_000])
    server.ranges, server.breaks_at = False, 100_000
    with pytest.raises(UserError, match="goes on after 800000 bytes"):
        fetch(server.url, tmp_path, SHA256)
    assert [path.name for path in tmp_path.iterdir()] == [part.name]
    server.breaks_at = 0
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 1000, CONTENT + b"x"])
def test_a_part_of_something_else_is_not_kept(server, tmp_path, part):
    (tmp_path / "data.bin.part").write_bytes(part)
    with pytest.raises(UserError, match=r"checksum|not of this file"):
        fetch(server.url, tmp_path, SHA256)
    assert not list(tmp_path.iterdir())
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == CONTENT


def test_another_checksum_is_a_message_and_the_file_goes(server, tmp_path):
    with pytest.raises(UserError, match=r"data.bin.*another checksum"):
        fetch(server.url, tmp_path, "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_a_missing_server_are_messages(server, tmp_path):
    with pytest.raises(UserError, match="404"):
        fetch(server.url.replace("data", "other"), tmp_path, SHA256)
    with pytest.raises(UserError, match="127.0.0.1"):
        fetch("http://127.0.0.1:9/data.bin", tmp_path, SHA256)
