"""Pictures, clips and a small web server, all made on the spot, for the tests of `qvl.processing`."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds almost nothing: what a decompression bomb looks like."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def webm_clip(path: Path, *, frames: int, fps: int, step: int) -> Path:
    """`grey_clip` as WebM, in a process of its own: PyAV cannot open libvpx once decord has loaded its own."""
    call = f"grey_clip(Path({str(path)!r}), frames={frames}, fps={fps}, step={step}, codec='libvpx')"
    code = f"from pathlib import Path; from tests.unit.media_fixtures import grey_clip; {call}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, timeout=60)
    return path


def grey_clip(
    path: Path, *, frames: int, fps: int = 10, size: tuple[int, int] = (64, 96), codec: str = "libx264", step: int = 8
) -> Path:
    """Encode a clip whose frame i is one grey of about i * step, so that a decoded frame tells its number."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 8
        for index in range(frames):
            picture = np.full((*size, 3), index * step, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append((self.path, dict(self.headers)))
        name = self.path.strip("/").split("?")[0]
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough, which the test is about
            getattr(self, f"say_{name}", self.say_missing)()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def say_missing(self) -> None:
        self.reply(404)

    def say_picture(self) -> None:
        body: bytes = self.server.picture  # type: ignore[attr-defined]
        self.reply(200, body, Content_Length=str(len(body)))

    def say_moved(self) -> None:
        self.reply(302, Location="/picture")

    def say_loop(self) -> None:
        self.reply(302, Location="/loop")

    def say_elsewhere(self) -> None:
        self.reply(302, Location="file:///etc/passwd")

    def say_hang(self) -> None:
        time.sleep(5)

    def say_trickle(self) -> None:
        self.reply(200)
        for _ in range(50):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def say_endless(self) -> None:
        self.reply(200)
        for _ in range(10_000):
            self.wfile.write(bytes(1 << 16))
            self.server.sent += 1 << 16  # type: ignore[attr-defined]

    def say_huge(self) -> None:
        self.reply(200, Content_Length=str(10 * 1024**3))

    def say_short(self) -> None:
        self.reply(200, b"only this", Content_Length="5000")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        pass


@contextmanager
def web_server(picture: bytes) -> Iterator[Any]:
    """A server on this machine; `url` is its address, `seen` the requests, `sent` the bytes of /endless."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.picture, server.seen, server.sent = picture, [], 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
