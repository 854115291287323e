"""The HTTP API of an annotation project: JSON for labelers, admins, ``simulate`` and tests.

A session is a cookie (HttpOnly, SameSite=Lax); every request that changes something also brings the session's
CSRF token in ``X-CSRF-Token``, which ``/api/login``, ``/api/join`` and ``/api/session`` tell. Refusals are
``{"error": {"code": ..., "message": ...}}`` with a status that fits. Answers are data, never HTML.

    POST /api/login     {name, password}                 -> {user: {name, role}, csrf, expires}
    POST /api/join      {code, name, password}           -> the same, with a new account
    GET  /api/session                                    -> the same
    POST /api/logout    {}
    POST /api/next      {}                               -> results.Task, or results.NoTask (``kind`` tells)
    POST /api/vote      {pair, token, hallucination, helpfulness?, marks?, seconds?, next?}
                                                         -> {vote: results.Kept, next: Task | NoTask | null}
    POST /api/skip      {pair, token, reason, note?}     -> results.Kept
    POST /api/undo      {token}                          -> results.Task with ``before``
    POST /api/renew     {pair}                           -> {seconds_left}
    POST /api/release   {}
    GET  /api/progress                                   -> results.Progress
    GET  /api/reasons                                    -> {code: words} of skips
    GET  /api/image/{pair}                               -> the picture, with an ETag

Admins' requests are in ``apps.annotate.admin_api``.
"""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from pydantic import Field
from sqlalchemy.exc import DBAPIError
from starlette.requests import Request
from starlette.responses import Response

from apps.annotate import admin_api
from apps.annotate.accounts import Session
from apps.annotate.errors import Refused
from apps.annotate.marks import MOST
from apps.annotate.results import SKIP_REASONS, Answers, Side
from apps.annotate.service import Service
from apps.annotate.web import (
    Api,
    Body,
    Guard,
    Site,
    address,
    answer,
    on_bug,
    on_database,
    on_refused,
    read,
    told,
)


class Nothing(Body):
    pass


class Login(Body):
    name: str = Field(max_length=200)
    password: str = Field(max_length=1000)


class Join(Login):
    code: str = Field(max_length=200)


class Vote(Body):
    pair: str = Field(max_length=64)
    token: str = Field(max_length=64)
    hallucination: Literal["A", "B", "tie"]
    helpfulness: Side | None = None
    marks: dict[Side, list[tuple[int, int]]] = Field(default_factory=dict, max_length=MOST)
    seconds: float | None = None
    #: whether the answer holds the next pair too
    next: bool = False


class Skip(Body):
    pair: str = Field(max_length=64)
    token: str = Field(max_length=64)
    reason: str
    note: str = ""


class Undo(Body):
    token: str = Field(max_length=64)


class OfPair(Body):
    pair: str = Field(max_length=64)


class LabelerApi(Api):
    """What labelers ask for."""

    async def login(self, request: Request) -> Response:
        body, replaces = await read(request, Login), self.token(request)
        given = (body.name, body.password, address(request), replaces)
        return await self.enter(request, lambda: self.service.accounts.sign_in(*given))

    async def join(self, request: Request) -> Response:
        body, replaces = await read(request, Join), self.token(request)
        given = (body.code, body.name, body.password, address(request), replaces)
        return await self.enter(request, lambda: self.service.accounts.join(*given))

    async def logout(self, request: Request) -> Response:
        await read(request, Nothing)
        return await self.run(request, self.leave(request))

    async def whoami(self, request: Request) -> Response:
        return await self.run(request, told)

    async def next(self, request: Request) -> Response:
        await read(request, Nothing)
        return await self.run(request, lambda session: self.service.next_task(session.user))

    async def vote(self, request: Request) -> Response:
        body = await read(request, Vote)
        answers = Answers(body.hallucination, body.helpfulness, body.marks)

        def work(session: Session) -> object:
            given = (session.user, body.pair, answers, body.token, body.seconds)
            if body.next:
                kept, task = self.service.vote_and_next(*given)
                return {"vote": kept, "next": task}
            return {"vote": self.service.vote(*given), "next": None}

        return await self.run(request, work)

    async def skip(self, request: Request) -> Response:
        body = await read(request, Skip)
        given = (body.pair, body.reason, body.token, body.note)
        return await self.run(request, lambda session: self.service.skip(session.user, *given))

    async def undo(self, request: Request) -> Response:
        body = await read(request, Undo)
        return await self.run(request, lambda session: self.service.undo(session.user, body.token))

    async def renew(self, request: Request) -> Response:
        body = await read(request, OfPair)

        def work(session: Session) -> object:
            return {"seconds_left": self.service.renew(session.user, body.pair)}

        return await self.run(request, work)

    async def release(self, request: Request) -> Response:
        await read(request, Nothing)

        def work(session: Session) -> object:
            self.service.release(session.user)
            return {"released": True}

        return await self.run(request, work)

    async def progress(self, request: Request) -> Response:
        return await self.run(request, lambda session: self.service.progress(session.user))

    async def reasons(self, request: Request) -> Response:
        return answer(SKIP_REASONS)

    async def image(self, request: Request) -> Response:
        pair = request.path_params["pair"]
        known = request.headers.get("if-none-match", "").removeprefix("W/").strip('"') or None

        def work(session: Session) -> Response:
            found = self.service.picture(session.user, pair, known)
            # another person at the same browser asks anew
            headers = {"Cache-Control": "private, max-age=3600", "Vary": "Cookie"}
            if found is None:
                return Response(status_code=304, headers=headers | {"ETag": f'"{known}"'})
            headers |= {"ETag": f'"{found.etag}"', "Content-Disposition": "inline"}
            return Response(found.data, headers=headers, media_type=found.media_type)

        return await self.run(request, work)


def create_app(service: Service, site: Site | None = None) -> FastAPI:
    """The API as an application, to which pages can be added (``gradio.mount_gradio_app``, or routes).

    What is mounted later is guarded too: hosts, origins and headers are checked and set around everything.
    """
    site = site or Site()
    app = FastAPI(title="align annotate", docs_url=None, redoc_url=None, openapi_url=None)
    api = LabelerApi(service, site)
    posts = {
        "login": api.login, "join": api.join, "logout": api.logout, "next": api.next, "vote": api.vote,
        "skip": api.skip, "undo": api.undo, "renew": api.renew, "release": api.release,
    }  # fmt: skip
    gets = {
        "session": api.whoami,
        "progress": api.progress,
        "reasons": api.reasons,
        "image/{pair}": api.image,
    }
    for method, endpoints in (("POST", posts), ("GET", gets)):
        for name, endpoint in endpoints.items():
            app.add_route(f"/api/{name}", endpoint, methods=[method])
    admin_api.add_routes(app, service, site)
    app.add_exception_handler(Refused, on_refused)
    app.add_exception_handler(DBAPIError, on_database)
    app.add_exception_handler(Exception, on_bug)
    app.add_middleware(Guard, site=site)
    return app
