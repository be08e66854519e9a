"""Downloads are whole or not there, and go on where they ended."""

import hashlib
import http.server
import os
import re
import threading

import pytest

from mmlska.checkpoint import CheckpointError
from mmlska.checkpoint.downloads import cached_path, download

CONTENT = os.urandom(3000)


class Server:
    """A server of one file that can be told to cut its answers, with a log of the ranges."""

    def __init__(self):
        self.content, self.tag, self.cut_at, self.ranges = CONTENT, '"one"', None, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f'http://127.0.0.1:{self.server.server_port}/weights.pth'

    def answer(self, handler):
        asked = handler.headers.get('Range')
        self.ranges.append(asked)
        same = asked and handler.headers.get('If-Range') == self.tag
        start = int(re.fullmatch(r'bytes=(\d+)-', asked)[1]) if same else 0
        if same and start >= len(self.content):
            return handler.send_error(416)
        body = self.content[start:]
        handler.send_response(206 if same else 200)
        handler.send_header('Content-Length', str(len(body)))
        if self.tag:
            handler.send_header('ETag', self.tag)
        handler.end_headers()
        handler.wfile.write(body[: self.cut_at])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def cut_once(server, folder):
    server.cut_at = 1000
    with pytest.raises(CheckpointError, match='it ended after 1000 of 3000 bytes'):
        download(server.url, folder)
    server.cut_at = None
    assert not cached_path(server.url, folder).exists()


def test_a_cut_download_goes_on(server, tmp_path):
    cut_once(server, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, 'bytes=1000-']
    assert [path.suffix for path in tmp_path.iterdir()] == ['.pth']
    download(server.url, tmp_path)
    assert len(server.ranges) == 2


def test_another_file_at_the_address_begins_anew(server, tmp_path):
    cut_once(server, tmp_path)
    server.content, server.tag = CONTENT[::-1], '"two"'
    assert download(server.url, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize('tag', [None, 'W/"weak"'])
def test_without_a_strong_mark_nothing_is_resumed(tag, server, tmp_path):
    server.tag = tag
    cut_once(server, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_whole_file_that_was_not_moved_is_fetched_again(server, tmp_path):
    cut_once(server, tmp_path)
    (partial,) = tmp_path.glob('*.part')
    partial.write_bytes(CONTENT)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, 'bytes=3000-', None]


def test_a_file_of_another_hash_is_not_kept(server, tmp_path):
    with pytest.raises(CheckpointError, match='and 00000000 is expected'):
        download(server.url, tmp_path, sha256='0' * 8)
    assert not cached_path(server.url, tmp_path).exists()
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert download(server.url, tmp_path, sha256=digest).read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match='and 00000000 is expected'):
        download(server.url, tmp_path, sha256='0' * 8)


def test_several_jobs_fetch_a_file_once(server, tmp_path):
    threads = [threading.Thread(target=download, args=(server.url, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cached_path(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(server, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match=r'cannot be kept in .*set TORCH_HOME to a folder'):
        download(server.url, tmp_path / 'file' / 'hub')
