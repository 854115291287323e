"""Pictures by address, from a real server on this machine that also fails in every way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image as Pil

from data import urls
from data.images import check_image, content_hash, image_bytes, inspect_image, open_image
from data.jsonl import DataError
from data.schema import Image


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Pil.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))
PAGE = b"<html>Sign in</html>"


class Pictures:
    """Notes what it is asked for. ``/picture`` is the one in ``now``; the other names are failures."""

    def __init__(self) -> None:
        self.now, self.asked = RED, list[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                # a client that has given up
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    getattr(outer, self.path.strip("/").partition("?")[0], outer.missing)(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def send(self, to: BaseHTTPRequestHandler, data: bytes, status: int = 200, **headers: str) -> None:
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(data)

    def missing(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, RED, 404, Content_Type="image/png")

    def picture(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, self.now, Content_Type="image/png")

    def page(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, PAGE, Content_Type="text/html")

    def nothing(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, b"", Content_Length="0")

    def announced(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, RED, Content_Length=str(10**9))

    def endless(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, RED + bytes(5000))

    def cut(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, RED[:30], Content_Length=str(len(RED)))

    def silent(self, to: BaseHTTPRequestHandler) -> None:
        time.sleep(1)

    def drip(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, b"")
        for byte in RED:
            to.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def moved(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, b"", 302, Location="/picture")

    def ring(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, b"", 302, Location="/ring")

    def to_file(self, to: BaseHTTPRequestHandler) -> None:
        self.send(to, b"", 302, Location="file:///etc/passwd")


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pictures]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Pictures()
    yield found
    found.http.shutdown()
    found.http.server_close()


def fetched(url: str, cache: Path | None = None) -> bytes:
    return image_bytes(Image(id="i", url=url), None, allow_urls=True, cache=cache)


def test_without_the_flag_nothing_is_asked(pictures: Pictures, tmp_path: Path) -> None:
    image = Image(id="i", url=f"{pictures.url}/picture")
    fetched(f"{pictures.url}/picture", tmp_path)
    for ask in (image_bytes, open_image, check_image, inspect_image, content_hash):
        with pytest.raises(DataError, match="URLs are not fetched here; download it") as caught:
            ask(image, tmp_path, cache=tmp_path)
        assert caught.value.key == "image.url"
    assert pictures.asked == ["/picture"]


def test_with_the_flag_it_is_a_picture_like_others(pictures: Pictures) -> None:
    image = Image(id="i", url=f"{pictures.url}/picture")
    assert image_bytes(image, None, allow_urls=True) == RED
    assert open_image(image, None, allow_urls=True).getpixel((0, 0)) == (255, 0, 0)
    check_image(image, None, allow_urls=True)
    info = inspect_image(image, None, allow_urls=True)
    assert (info.width, info.height, info.format) == (3, 2, "PNG")
    assert content_hash(image, None, allow_urls=True) == hashlib.sha256(RED).hexdigest()
    assert len(pictures.asked) == 5  # nothing is kept where no folder is given
    assert fetched(f"{pictures.url}/moved") == RED
    upper = "HTTP" + pictures.url.removeprefix("http")
    assert fetched(f"{upper}/picture") == RED


def test_a_download_is_kept_by_the_hash_of_its_address(pictures: Pictures, tmp_path: Path) -> None:
    first, second = f"{pictures.url}/picture?1", f"{pictures.url}/picture?2"
    cache = tmp_path / "new" / "cache"
    assert fetched(first, cache) == RED
    pictures.now = BLUE
    assert fetched(first, cache) == RED
    assert open_image(Image(id="i", url=first), None, allow_urls=True, cache=cache).size == (3, 2)
    assert fetched(second, cache) == BLUE
    assert pictures.asked == ["/picture?1", "/picture?2"]
    names = [hashlib.sha256(url.encode()).hexdigest() for url in (first, second)]
    assert sorted(p.name for p in cache.iterdir()) == sorted([*names, *(f"{n}.sha256" for n in names)])
    assert (cache / names[0]).read_bytes() == RED and (cache / names[1]).read_bytes() == BLUE


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(RED[:-12]),  # it still looks like a picture
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(PAGE),
        lambda path: path.unlink(),
        lambda path: path.with_name(path.name + ".sha256").write_bytes(b""),
        lambda path: path.with_name(path.name + ".sha256").unlink(),
    ],
)
def test_a_damaged_file_is_fetched_again(pictures: Pictures, tmp_path: Path, damage: object) -> None:
    url = f"{pictures.url}/picture"
    fetched(url, tmp_path)
    damage(urls.cached(url, tmp_path))
    for _ in range(2):
        assert fetched(url, tmp_path) == RED
    assert pictures.asked == ["/picture", "/picture"]


@pytest.mark.parametrize(
    ("name", "words", "mend"),
    [
        ("missing", r"the server answers 404 \(Not Found\)", "correct the address"),
        ("page", r"cannot be decoded .*; the server calls it 'text/html'", "correct the address"),
        ("nothing", r"is empty \(0 bytes\)", "correct the address"),
        ("announced", r"holds more than 4000 bytes", "shrink it"),
        ("endless", r"holds more than 4000 bytes", "shrink it"),
        ("cut", r"cannot be fetched \(", "correct the address"),
        ("silent", r"stalls \(nothing for 0.3 s\)", "correct the address"),
        ("drip", r"stalls \(not through after 0.5 s\)", "correct the address"),
        ("ring", r"cannot be fetched \(.*redirects", "correct the address"),
        ("to_file", r"cannot be fetched \(.*file://", "correct the address"),
    ],
)
def test_what_goes_wrong_is_told_and_not_kept(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, mend: str
) -> None:
    for limit, value in {"MAX_BYTES": 4000, "TIMEOUT": 0.3, "DEADLINE": 0.5}.items():
        monkeypatch.setattr(urls, limit, value)
    url = f"{pictures.url}/{name}"
    began = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        fetched(url, tmp_path)
    assert time.monotonic() - began < 5
    assert caught.value.key == "image.url" and mend in caught.value.mend
    assert url in caught.value.rule
    assert list(tmp_path.iterdir()) == []


def test_addresses_that_lead_nowhere(tmp_path: Path) -> None:
    with socket.socket() as closed:  # nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        cases = [
            (f"http://127.0.0.1:{port}/a.png", "cannot be fetched"),
            ("http://", "cannot be fetched"),
            ("http://[", "cannot be fetched"),
            ("http://127.0.0.1:99999/", "cannot be fetched"),
            ("http://\ud800/a.png", "cannot be fetched"),
            ("http://" + "x" * 300 + ".invalid/", "cannot be fetched"),
            ("file:///etc/passwd", "is not an http"),
            ("ftp://127.0.0.1/a.png", "is not an http"),
            ("a.png", "is not an http"),
        ]
        for url, words in cases:
            with pytest.raises(DataError, match=words) as caught:
                fetched(url, tmp_path)
            assert caught.value.key == "image.url" and caught.value.mend
            assert repr(url) in caught.value.rule


def test_a_folder_that_cannot_keep_it(pictures: Pictures, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot hold downloads") as caught:
        fetched(f"{pictures.url}/picture", tmp_path / "file")
    assert caught.value.key == "cache"
