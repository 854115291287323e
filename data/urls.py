"""Fetch pictures by their address, with limits on everything, and keep them on disk. Needs no torch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data.errors import DataError
from data.files import replacing_bytes

#: larger downloads are refused
MAX_BYTES = 64 * 2**20
#: seconds without a sign of life, for the connection and for each piece of the answer
TIMEOUT = 20.0
#: seconds for one whole download: a server may send a byte now and then for ever
DEADLINE = 300.0
#: redirects that are followed, to http and https only
REDIRECTS = 5

_MEND = "correct the address, or download the picture into the image root and give its path"


def fetch(url: str, check: Callable[[bytes], None], cache: str | Path | None = None) -> bytes:
    """The bytes behind an http(s) address, from the folder ``cache`` where they lie there undamaged.

    ``check`` raises DataError for bytes that are none of what is wanted; those are not kept. In the cache a
    file's name is the SHA-256 of its address; beside it stands the SHA-256 of its bytes (``.sha256``), by
    which damage shows. Raises DataError, key "image.url", whatever goes wrong.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DataError(f"{url!r} is not an http(s) address", key="image.url", mend="use http(s) or a path")
    place = None if cache is None else cached(url, cache)
    data = None if place is None else _undamaged(place)
    if data is not None:
        return data
    data, kind = _download(url)
    try:
        check(data)
    except DataError as error:
        raise _fault(f"{error.rule}; the server calls it {kind!r}") from None
    if place is not None:
        _keep(place, data)
    return data


def cached(url: str, cache: str | Path) -> Path:
    """Where the bytes behind an address are kept."""
    return Path(cache) / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _undamaged(place: Path) -> bytes | None:
    try:
        data, digest = place.read_bytes(), _digest_file(place).read_bytes()
    except OSError:  # not there, or only one of the two: it is fetched (again)
        return None
    return data if hashlib.sha256(data).hexdigest().encode() == digest else None


def _keep(place: Path, data: bytes) -> None:
    try:
        # the digest last: without it, or with an older one, the picture counts as damaged
        for path, content in (place, data), (_digest_file(place), hashlib.sha256(data).hexdigest().encode()):
            with replacing_bytes(path) as part:
                part.write_bytes(content)
    except OSError as error:
        rule = f"{str(place.parent)!r} cannot hold downloads ({error.strerror})"
        raise DataError(rule, key="cache", mend="give a folder that can be written, with room") from error


def _digest_file(place: Path) -> Path:
    return place.with_name(place.name + ".sha256")


def _download(url: str) -> tuple[bytes, str]:
    """The bytes, and what the server says they are."""
    import httpx

    # not packed, so that the size on the wire is the size in memory
    headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "align-lmm"}
    opened = httpx.Client(follow_redirects=True, max_redirects=REDIRECTS, timeout=TIMEOUT, headers=headers)
    try:
        with opened as client, client.stream("GET", url) as reply:
            if not reply.is_success:
                rule = f"{url!r}: the server answers {reply.status_code} ({reply.reason_phrase})"
                raise _fault(rule)
            length = reply.headers.get("content-length", "")
            if length.isdecimal() and int(length) > MAX_BYTES:
                raise _too_large(url)
            return _body(url, reply.iter_bytes()), reply.headers.get("content-type", "")
    except DataError:
        raise
    except httpx.TimeoutException as error:
        raise _fault(f"{url!r} stalls (nothing for {TIMEOUT:g} s)") from error
    # ValueError is what odd addresses end in, below httpx
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise _fault(f"{url!r} cannot be fetched ({error})") from error


def _body(url: str, pieces: Iterator[bytes]) -> bytes:
    data, end = bytearray(), time.monotonic() + DEADLINE
    for piece in pieces:
        data += piece
        if len(data) > MAX_BYTES:
            raise _too_large(url)
        if time.monotonic() > end:
            raise _fault(f"{url!r} stalls (not through after {DEADLINE:g} s)")
    return bytes(data)


def _too_large(url: str) -> DataError:
    rule = f"{url!r} holds more than {MAX_BYTES} bytes"
    return DataError(rule, key="image.url", mend="download and shrink it, and give its path")


def _fault(rule: str) -> DataError:
    return DataError(rule, key="image.url", mend=_MEND)
