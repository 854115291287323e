"""HTTP around the service: cookies, checks that hold for every request, and answers as JSON."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
from anyio import CapacityLimiter
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json
from sqlalchemy.exc import DataError, DBAPIError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.annotate.accounts import LONGEST_SESSION, Session, SignedIn, check_csrf
from apps.annotate.errors import Refused, forbidden, invalid
from apps.annotate.service import Service
from data.errors import explain

B = TypeVar("B", bound=BaseModel)
#: bytes of a request; the longest vote has two times 200 marks
MAX_BODY = 64 * 1024
_SAFE = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: what requests say of the way that they came
_CLAIMS = (b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server")
#: of every answer
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
#: answers of the API are data: opened as a page they can do nothing
_API_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
#: pages bring their own policy, or this one: nothing comes from elsewhere or is sent there. Gradio's page and
#: ours have scripts and styles inline; what labelers read comes as JSON and becomes text nodes alone
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'none'; "
    "frame-src 'none'; frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
)


@dataclass(frozen=True)
class Site:
    """Where the app is reached."""

    #: cookies go over https only
    secure: bool = False
    #: such as https://labels.example.org, where a proxy stands in front
    origin: str | None = None
    #: names that a request may ask for; None: any
    hosts: frozenset[str] | None = frozenset(_LOOPBACK)

    @property
    def cookie(self) -> str:
        """The session cookie's name; one with the prefix is taken over https alone, from this host alone."""
        return "__Host-align_session" if self.secure else "align_session"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: only known hosts, changes only from pages of this origin, small bodies, headers."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and self._fault(scope):
                return  # closed before it is accepted
            await self.app(scope, receive, send)
            return
        policy = _API_POLICY if scope["path"].startswith("/api/") else _PAGE_POLICY

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", policy)
                if self.site.secure:
                    headers.setdefault("Strict-Transport-Security", "max-age=31536000")
            await send(message)

        if fault := self._fault(scope):
            await refused(fault)(scope, receive, with_headers)
            return
        await self.app(self._as_reached(scope), receive, with_headers)

    def _as_reached(self, scope: Scope) -> Scope:
        """The request as the browser sent it, whatever a proxy says of that or leaves out.

        Gradio builds its page's addresses from the scheme and the host, and believes headers in their place.
        """
        headers = [(name, value) for name, value in scope["headers"] if name not in _CLAIMS]
        changed = {"headers": headers} | ({"scheme": "https"} if self.site.secure else {})
        if self.site.origin is not None:
            host = urlsplit(self.site.origin).netloc.encode("ascii")
            changed["headers"] = [(b"host", host), *(pair for pair in headers if pair[0] != b"host")]
        return {**scope, **changed}

    def _fault(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
            elsewhere = origin not in (None, self.site.origin) and urlsplit(origin).netloc != host
        except ValueError:
            return Refused("host", "no address of a site", 400)
        if self.site.hosts is not None and name not in self.site.hosts:
            # a page elsewhere whose name was pointed at this machine
            return Refused("host", "the server is not known by this name", 421)
        if scope["type"] == "http" and scope["method"] in _SAFE:
            return None
        return forbidden("the request comes from another site") if elsewhere else None


# --- requests ---


class Body(BaseModel):
    """What a request brings: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


async def read(request: Request, model: type[B]) -> B:
    """The JSON body. Raises Refused for another type (415), too much (413), or odd values (422)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused("invalid", "send application/json", 415)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise Refused("invalid", f"a request has at most {MAX_BODY} bytes", 413)
    try:
        return model.model_validate_json(bytes(data))
    except ValidationError as error:
        raise invalid(str(explain(error, model))) from None


def address(request: Request) -> str:
    """Who asks."""
    return request.client.host if request.client is not None else "unknown"


# --- answers ---


def answer(value: Any, status: int = 200) -> Response:
    """A value (dataclasses too) as JSON that is not kept anywhere."""
    text = to_json(value, inf_nan_mode="null")
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(text, status, headers, media_type="application/json")


def refused(error: Refused) -> Response:
    """A refusal as JSON: ``{"error": {"code", "message"}}``."""
    found = answer({"error": {"code": error.code, "message": str(error)}}, error.status)
    if error.wait is not None:
        found.headers["Retry-After"] = str(max(1, round(error.wait)))
    return found


class Api:
    """Endpoints over one service."""

    def __init__(self, service: Service, site: Site) -> None:
        self.service, self.site = service, site
        # a guess costs a hash of some tenths of a second: guesses must not take all threads
        self.guessing = CapacityLimiter(2)

    def token(self, request: Request) -> str | None:
        """The session cookie's value."""
        return request.cookies.get(self.site.cookie)

    def session(self, request: Request, role: str | None = None) -> Session:
        """The session of a request; one that changes something must bring its CSRF token.

        Raises:
            Refused: no session (401), no token, or another role (403).
        """
        session = self.service.accounts.session(self.token(request))
        if request.method not in _SAFE:
            check_csrf(session, request.headers.get("x-csrf-token"))
        if role is not None and session.user.role != role:
            raise forbidden(f"this is for the role {role}")
        return session

    async def run(
        self, request: Request, work: Callable[[Session], Any], role: str | None = None
    ) -> Response:
        """Check the session and do the work, in one thread; its value as JSON, or its own response."""

        def both() -> Response:
            found = work(self.session(request, role))
            return found if isinstance(found, Response) else answer(found)

        return await anyio.to_thread.run_sync(both)

    async def enter(self, request: Request, guess: Callable[[], SignedIn]) -> Response:
        """Sign in by ``guess``, and set the cookie."""
        signed = await anyio.to_thread.run_sync(guess, limiter=self.guessing)
        found = answer(told(signed.session))
        found.set_cookie(
            self.site.cookie, signed.token, max_age=int(LONGEST_SESSION), path="/", httponly=True,
            samesite="lax", secure=self.site.secure,
        )  # fmt: skip
        return found

    def leave(self, request: Request) -> Callable[[Session], Response]:
        """End the session, and take the cookie away."""

        def work(_: Session) -> Response:
            self.service.accounts.sign_out(self.token(request) or "")
            found = answer({"signed_out": True})
            found.delete_cookie(
                self.site.cookie, path="/", httponly=True, samesite="lax", secure=self.site.secure
            )
            return found

        return work


def told(session: Session) -> dict[str, Any]:
    """What a page gets to know of its session."""
    user = {"name": session.user.name, "role": session.user.role}
    return {"user": user, "csrf": session.csrf, "expires": session.expires}


async def on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refused(error)


async def on_database(_: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    if isinstance(error, DataError):
        # PostgreSQL has no text with a NUL in it; the same request would fail again
        return refused(invalid("the request holds something that the store cannot keep"))
    message = "the store does not answer; nothing was kept. Send the same request again"
    return refused(Refused("unavailable", message, 503, wait=1))


async def on_bug(_: Request, error: Exception) -> Response:
    return refused(Refused("bug", "something went wrong here; nothing was kept", 500))
