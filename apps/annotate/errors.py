"""What can go wrong in the annotation app: a person's request, or the store behind it."""

from __future__ import annotations


class StoreError(ValueError):
    """A store that cannot be opened, read or changed as asked; the message says how to mend it."""


class Refused(ValueError):
    """A request that the service turns down. ``code`` is for programs, the message for people.

    ``status`` is the HTTP status that says the same; ``wait`` the seconds after which to try again.
    """

    def __init__(self, code: str, message: str, status: int, wait: float | None = None) -> None:
        super().__init__(message)
        self.code, self.status, self.wait = code, status, wait


def invalid(message: str) -> Refused:
    return Refused("invalid", message, 422)


def not_found(message: str) -> Refused:
    return Refused("not_found", message, 404)


def conflict(code: str, message: str) -> Refused:
    return Refused(code, message, 409)


def forbidden(message: str) -> Refused:
    return Refused("forbidden", message, 403)
