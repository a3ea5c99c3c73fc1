"""Sources: files, pipes, data URIs and URLs, and what is said when one of them fails."""

from __future__ import annotations

import base64
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qvl import __version__
from qvl.errors import MediaError
from qvl.processing import media
from qvl.processing.image import load_image
from qvl.processing.media import Piped, describe, open_source, read_source
from tests.unit.media_fixtures import encoded, noise, web_server

PICTURE = encoded(Image.fromarray(noise(8, 8)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NO_PROXY", "*")
    with web_server(PICTURE) as running:
        yield running


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(MediaError) as caught:
        read_source(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_stays_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a b%20%.png"
    path.write_bytes(PICTURE)
    for source in (path, str(path), path.as_uri(), f"file://{path}"):
        found = open_source(source)
        assert (found.path, found.data) == (path, b"")
        assert found.head(4) == b"\x89PNG"
        assert read_source(source) == PICTURE


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.png").write_bytes(PICTURE)
    assert read_source("~/x.png") == PICTURE


def test_local_failures_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    assert refusal(tmp_path / "none.png") == f"{tmp_path / 'none.png'}: no such file"
    assert refusal(tmp_path) == f"{tmp_path}: is a directory"
    assert refusal(tmp_path / "empty.png") == f"{tmp_path / 'empty.png'}: is empty"
    assert "cannot be read" in refusal("a\0b")
    assert "cannot be read" in refusal("x" * 5000)
    assert "ftp:// is not supported" in refusal("ftp://host/x.png")
    assert "names the host 'host'" in refusal("file://host/x.png")
    assert refusal(b"") == "<0 bytes>: is empty"


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(PICTURE,))
    writer.start()
    assert read_source(pipe) == PICTURE
    writer.join()


def test_stdin_is_read_once_and_remembered() -> None:
    stdin = io.BytesIO(PICTURE)
    assert read_source("-", stdin=stdin) == read_source("-", stdin=stdin) == PICTURE
    assert refusal("-", stdin=io.BytesIO()) == "standard input: is empty"
    assert (
        refusal("-", stdin=io.BytesIO(b"12345"), max_bytes=4) == "standard input: is larger than the limit of 4 bytes"
    )


def test_data_uris() -> None:
    packed = base64.b64encode(PICTURE).decode()
    assert read_source(f"data:image/png;base64,{packed}") == PICTURE
    assert read_source(f"DATA:image/png;base64,{packed.rstrip('=').replace('+', '-').replace('/', '_')}") == PICTURE
    assert read_source(f"data:image/png;base64,{packed[:20]}%0A\n{packed[20:].replace('=', '%3D')}") == PICTURE
    assert read_source("data:,a%20b%FF") == b"a b\xff"
    assert "not base64" in refusal("data:image/png;base64,????")
    assert "not base64" in refusal("data:image/png;base64,A")
    assert "no comma" in refusal("data:image/png")
    assert "is empty" in refusal("data:,")


def test_names_are_short_and_without_secrets() -> None:
    assert describe("https://me:secret@host:1/a.png?key=secret#secret") == "https://host:1/a.png?..."
    assert len(describe("data:image/png;base64," + "A" * 10_000)) < 80
    assert len(describe("x" * 10_000)) <= 200
    assert describe("a\nb") == "a?b"
    assert describe(noise(4, 5)) == "<ndarray (4, 5, 3)>"


def test_url_of_a_good_picture(server: Any) -> None:
    assert read_source(f"{server.url}/picture") == PICTURE
    assert server.seen[0][1]["User-Agent"] == f"qvl/{__version__}"
    assert read_source(f"{server.url}/moved") == PICTURE


def test_url_failures_say_what_and_where(server: Any) -> None:
    assert refusal(f"{server.url}/gone") == f"{server.url}/gone: the server answered 404 Not Found"
    assert refusal(f"{server.url}/loop") == f"{server.url}/loop: more than 5 redirects"
    assert len([path for path, _ in server.seen if path == "/loop"]) == media.MAX_REDIRECTS + 1
    assert "redirects to file:///etc/passwd, which is not http" in refusal(f"{server.url}/elsewhere")
    assert "connection ended" in refusal(f"{server.url}/short")
    assert "not a valid URL" in refusal("http://[bad/x.png")
    assert "could not be resolved" in refusal("http://nowhere.invalid/x.png")


def test_nobody_listens_and_the_password_is_not_shown(server: Any) -> None:
    port = server.server_address[1]
    server.shutdown()
    server.server_close()
    assert refusal(f"http://me:secret@127.0.0.1:{port}/x") == f"http://127.0.0.1:{port}/x: connection refused"


def test_url_too_large_stops_early(server: Any) -> None:
    started = time.monotonic()
    assert refusal(f"{server.url}/huge") == f"{server.url}/huge: is larger than the limit of 256 MiB"
    assert (
        refusal(f"{server.url}/endless", max_bytes=1 << 20)
        == f"{server.url}/endless: is larger than the limit of 1 MiB"
    )
    assert server.sent < 100 << 20
    assert time.monotonic() - started < 4


def test_url_that_hangs_times_out(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "READ_TIMEOUT", 0.3)
    started = time.monotonic()
    assert refusal(f"{server.url}/hang") == f"{server.url}/hang: no answer within 0.3 s"
    assert time.monotonic() - started < 3


def test_url_that_trickles_meets_the_deadline(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "DEADLINE", 0.5)
    started = time.monotonic()
    assert refusal(f"{server.url}/trickle") == f"{server.url}/trickle: download not finished after 0.5 s"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "url", ["http://[::1", "https://[::1/x.png?key=secret", "http://me:secret@[::1", "file://[::1"]
)
def test_an_address_that_cannot_be_parsed_is_named(url: str) -> None:
    said = refusal(url)
    assert said.endswith("is not a valid URL") and "[::1" in said and "secret" not in said


@pytest.mark.parametrize("name", ["no\x1b[31mpe.png", "a\0b", "nope\udcff.png", "data:\x1b[31m", "http://h\x1b/x"])
def test_control_characters_in_a_name_do_not_reach_the_terminal(name: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_source(name, max_bytes=1)
    assert str(caught.value).isprintable()


def test_a_data_uri_is_not_followed_by_two_colons() -> None:
    assert refusal("data:") == "data: bad data URI, it has no comma before the data"


def test_what_was_piped_in_is_called_standard_input() -> None:
    assert describe(Piped(b"1234567")) == "standard input" and refusal(Piped(b"")) == "standard input: is empty"
    with pytest.raises(MediaError, match=r"^standard input: not a picture"):
        load_image(Piped(b"1234567"))


def test_a_closed_stdin_has_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert refusal("-") == "standard input: nothing is piped in"


def test_offline_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_OFFLINE", "1")
    with pytest.raises(MediaError, match="QVL_OFFLINE is set"):
        read_source("http://127.0.0.1:9/x.png")
