"""Admins' part of the HTTP API.

    GET  /api/admin/overview                             -> stats.overview
    GET  /api/admin/labelers                             -> [results.LabelerRow]
    GET  /api/admin/agreement                            -> stats.agreement
    GET  /api/admin/bias                                 -> stats.bias
    GET  /api/admin/disputed?after=0&limit=20            -> {count, pairs: [results.Disputed]}
    POST /api/admin/adjudicate  {pair, token, hallucination, helpfulness, note?}  -> results.Kept
    POST /api/admin/invite      {role?, uses?, days?}    -> {id, code, path, role, uses, expires}
    GET  /api/admin/invitations                          -> [accounts.OpenInvitation]
    POST /api/admin/revoke      {id}
    POST /api/admin/labeler     {name, disabled?, limit?, retake?}
    GET  /api/admin/rules                                -> assign.Rules
    POST /api/admin/rules       {lease?, ...}            -> assign.Rules
    GET  /api/admin/sizes                                -> exports.sizes, the layouts, and the store's URL
    GET  /api/admin/export?labels=majority&to=schema     -> the file

Choices are by response index in the data's order; null is a tie.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from apps.annotate.accounts import Invitation, Session
from apps.annotate.errors import invalid
from apps.annotate.exports import LABELS, TARGETS, export
from apps.annotate.service import Service
from apps.annotate.store import without_password
from apps.annotate.web import Api, Body, Site, read
from data.errors import DataError

ADMIN = "admin"


class Adjudicate(Body):
    pair: str = Field(max_length=64)
    token: str = Field(max_length=64)
    hallucination: Literal[0, 1] | None
    helpfulness: Literal[0, 1] | None
    note: str = ""


class Invite(Body):
    role: Literal["labeler", "admin"] = "labeler"
    uses: int = 1
    days: float = 7.0


class Revoke(Body):
    id: str = Field(max_length=64)


class OfLabeler(Body):
    name: str = Field(max_length=64)
    disabled: bool | None = None
    #: -1: the project's own
    limit: int | None = Field(default=None, ge=-1, le=10**9)
    retake: bool = False


class NewRules(Body):
    lease: float | None = None
    qualification: int | None = None
    pass_mark: int | None = None
    gold_every: int | None = None
    limit: int | None = None


class AdminApi(Api):
    """What admins ask for."""

    async def overview(self, request: Request) -> Response:
        return await self.run(request, lambda _: self.service.overview(), ADMIN)

    async def labelers(self, request: Request) -> Response:
        return await self.run(request, lambda _: self.service.labelers(), ADMIN)

    async def agreement(self, request: Request) -> Response:
        return await self.run(request, lambda _: self.service.agreement(), ADMIN)

    async def bias(self, request: Request) -> Response:
        return await self.run(request, lambda _: self.service.bias(), ADMIN)

    async def disputed(self, request: Request) -> Response:
        after, limit = (_whole(request, key, default) for key, default in (("after", 0), ("limit", 20)))

        def work(_: Session) -> object:
            count, found = self.service.disputed(after, min(limit, 100))
            return {"count": count, "pairs": found}

        return await self.run(request, work, ADMIN)

    async def adjudicate(self, request: Request) -> Response:
        body = await read(request, Adjudicate)
        given = (body.pair, body.hallucination, body.helpfulness, body.token, body.note)
        return await self.run(request, lambda s: self.service.adjudicate(s.user, *given), ADMIN)

    async def invite(self, request: Request) -> Response:
        body = await read(request, Invite)

        def work(_: Session) -> object:
            made = self.service.accounts.invite(body.role, body.uses, body.days)
            return asdict(made) | {"id": made.id, "path": invitation_path(made)}

        return await self.run(request, work, ADMIN)

    async def invitations(self, request: Request) -> Response:
        return await self.run(request, lambda _: self.service.accounts.invitations(), ADMIN)

    async def revoke(self, request: Request) -> Response:
        body = await read(request, Revoke)

        def work(_: Session) -> object:
            self.service.accounts.revoke(body.id)
            return {"revoked": body.id}

        return await self.run(request, work, ADMIN)

    async def labeler(self, request: Request) -> Response:
        body = await read(request, OfLabeler)

        def work(session: Session) -> object:
            if body.disabled is not None:
                if body.name == session.user.name:
                    raise invalid("nobody shuts himself out; ask another admin")
                self.service.accounts.change(body.name, disabled=body.disabled)
            self.service.set_labeler(body.name, limit=body.limit, retake=body.retake)
            return {"changed": body.name}

        return await self.run(request, work, ADMIN)

    async def rules(self, request: Request) -> Response:
        if request.method == "GET":
            return await self.run(request, lambda _: self.service.rules, ADMIN)
        body = await read(request, NewRules)
        changes = body.model_dump(exclude_none=True)
        return await self.run(request, lambda _: self.service.set_rules(changes), ADMIN)

    async def sizes(self, request: Request) -> Response:
        def work(_: Session) -> object:
            return {
                "labels": self.service.export_sizes(),
                "targets": TARGETS,
                "store": without_password(self.service.store.url),
            }

        return await self.run(request, work, ADMIN)

    async def export(self, request: Request) -> Response:
        labels, to = (request.query_params.get(k, d) for k, d in (("labels", "majority"), ("to", "schema")))
        if labels not in LABELS or to not in TARGETS:
            raise invalid(f"labels is one of {', '.join(LABELS)}; to one of {', '.join(TARGETS)}")

        def work(_: Session) -> Response:
            name = f"{labels}{'.json' if to == 'llava_rlhf' else '.jsonl'}"
            folder = tempfile.TemporaryDirectory(prefix="align-export-")
            path = Path(folder.name) / name
            try:
                export(self.service.store, path, labels, to)
            except DataError as error:
                folder.cleanup()
                raise invalid(error.rule) from None
            # without the sandbox of other answers, in which some browsers refuse to save a file
            policy = "default-src 'none'; frame-ancestors 'none'"
            headers = {"Cache-Control": "no-store", "Content-Security-Policy": policy}
            done = BackgroundTask(folder.cleanup)
            kind = "application/octet-stream"
            return FileResponse(path, filename=name, headers=headers, media_type=kind, background=done)

        return await self.run(request, work, ADMIN)


def invitation_path(made: Invitation) -> str:
    """Where an invitation leads. The code stands behind the #, so that no server and no proxy logs it."""
    return f"/{'admin/' if made.role == ADMIN else ''}#join={made.code}"


def _whole(request: Request, key: str, default: int) -> int:
    text = request.query_params.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise invalid(f"{key} is a whole number")
    return int(text)


def add_routes(app: FastAPI, service: Service, site: Site) -> None:
    """Add the admins' endpoints."""
    api = AdminApi(service, site)
    gets = {
        "overview": api.overview, "labelers": api.labelers, "agreement": api.agreement, "bias": api.bias,
        "disputed": api.disputed, "sizes": api.sizes, "export": api.export, "invitations": api.invitations,
    }  # fmt: skip
    posts = {
        "adjudicate": api.adjudicate, "invite": api.invite, "revoke": api.revoke, "labeler": api.labeler,
    }  # fmt: skip
    for method, endpoints in (("GET", gets), ("POST", posts)):
        for name, endpoint in endpoints.items():
            app.add_route(f"/api/admin/{name}", endpoint, methods=[method])
    app.add_route("/api/admin/rules", api.rules, methods=["GET", "POST"])
