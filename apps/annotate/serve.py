"""One process that serves a project, from its first request to a quiet end."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from apps.annotate.admin_api import invitation_path
from apps.annotate.errors import StoreError
from apps.annotate.server import create_app
from apps.annotate.service import Service
from apps.annotate.web import Site, is_loopback

#: seconds that running requests get once the end is asked for
GRACE = 10
#: proxies on this machine
_HERE = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Address:
    """Where to listen, and how people get there."""

    host: str = "127.0.0.1"
    #: 0: any that is free
    port: int = 7861
    certificate: Path | None = None
    key: Path | None = None
    #: https://... of a proxy, which ends TLS and sets X-Forwarded-For
    public: str | None = None
    #: IP addresses or networks of proxies elsewhere that are believed as those on this machine are
    proxies: tuple[str, ...] = ()
    #: serve an address other than this machine's without TLS
    plain: bool = False

    def check(self, accounts: int) -> None:
        """Raise StoreError where anybody could come in, or passwords would be read on their way.

        ``accounts``: how many there are.
        """
        public = urlsplit(self.public or "")
        known = public.scheme in ("http", "https") and public.path in ("", "/") and public.netloc.isascii()
        if self.public is not None and not known:
            mend = "give it like https://labels.example.org"
            raise StoreError(f"{self.public!r} is no address of a site; {mend}")
        if self.proxies and self.public is None:
            raise StoreError("a proxy stands before a site of its own; give --public-url with --proxy")
        self.believed()
        if (self.certificate is None) != (self.key is None):
            raise StoreError("a certificate goes with its key; give both --certificate and --key")
        for file in filter(None, (self.certificate, self.key)):
            if not file.is_file():
                raise StoreError(f"{file}: no such file; give PEM files for --certificate and --key")
        if not 0 <= self.port <= 65535:
            raise StoreError(f"there is no port {self.port}; give --port 0 (any free one) to 65535")
        if is_loopback(self.host) and self.public is None:
            return
        if not accounts:
            rule = f"{self.public or self.host} can be reached from elsewhere, and there is no account yet"
            raise StoreError(f"{rule}; make one first (align annotate users add NAME --role admin)")
        if self.certificate is None and public.scheme != "https" and not self.plain:
            rule = f"{self.host} would be served without TLS, so passwords could be read on their way"
            mend = "give --certificate and --key, or --public-url https://..., or --plain-http"
            raise StoreError(f"{rule}; {mend}")

    def site(self) -> Site:
        """The same for the checks of requests."""
        here = Site().hosts or frozenset()
        if self.public:
            public = urlsplit(self.public)
            # as browsers write it
            place = public.netloc.lower().removesuffix(":443" if public.scheme == "https" else ":80")
            origin = f"{public.scheme}://{place}"
            return Site(public.scheme == "https", origin, here | {public.hostname or ""})
        names = here | {self.host} if is_loopback(self.host) else None
        return Site(self.certificate is not None, None, names)

    def believed(self) -> list[str]:
        """From where X-Forwarded-For is believed, as uvicorn reads it: else anybody could be anybody.

        Raises:
            StoreError: a proxy's address is none, or a network that holds everybody.
        """
        if self.public is None:
            return []
        mend = "give --proxy 10.0.0.5, or a network like 10.0.0.0/24"
        found = list(_HERE)
        for text in self.proxies:
            try:
                # uvicorn takes what it cannot read for a name, without a word
                network = ipaddress.ip_network(text)
            except ValueError as error:
                raise StoreError(f"{text!r} is no IP address or network ({error}); {mend}") from None
            if network.prefixlen == 0:
                raise StoreError(f"{text!r} is everybody, and nobody could be told from another; {mend}")
            found.append(str(network.network_address if network.num_addresses == 1 else network))
        return found

    def url(self, port: int) -> str:
        """What to type into a browser."""
        if self.public:
            return self.public.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.certificate is None else 'https'}://{host}:{port}"


def serve(
    service: Service,
    address: Address,
    *,
    say: Callable[[str], object] = print,
    with_pages: Callable[[FastAPI, Service, Site], FastAPI] | None = None,
) -> None:
    """Serve until the process is asked to end (SIGINT, SIGTERM); running requests are finished then.

    ``say`` is told the address once it answers, and an invitation for the first admin where there is none.
    ``with_pages`` adds pages to the application.

    Raises:
        StoreError: the address may not be served (``Address.check``), or is taken.
    """
    address.check(service.accounts.count())
    listener = _listen(address)
    port = listener.getsockname()[1]
    site = address.site()
    app = create_app(service, site)
    if with_pages is not None:
        app = with_pages(app, service, site)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # who asks is told by the proxy, if there is one
        proxy_headers=address.public is not None,
        forwarded_allow_ips=address.believed(),
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
    )

    def begun() -> None:
        say(f"serving {address.url(port)} (end with Ctrl-C)")
        if not service.accounts.count("admin"):
            link = address.url(port) + invitation_path(service.accounts.invite("admin", days=1))
            say(f"the first admin comes in by {link} (once, within a day)")

    server = Server(config, begun)
    # uvicorn takes signals while it runs, and raises them again at its end for whoever had them before
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.end)
    server.run(sockets=[listener])
    say("stopped")


class Server(uvicorn.Server):
    """uvicorn's, which says when it has begun to answer."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()

    def end(self, *_: object) -> None:
        """Finish what runs, and stop."""
        self.should_exit = True


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=256)
    except OSError as error:
        where = f"{address.host}:{address.port}"
        raise StoreError(f"{where} cannot be listened on ({error.strerror}); choose another --port") from None
