"""Passwords as salted scrypt hashes, and files of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.rows import lines

SHORTEST, LONGEST = 8, 200
ROLES = ("labeler", "admin")
NAME = re.compile(r"\w[\w.@+-]{0,39}")


@dataclass(frozen=True)
class Cost:
    """scrypt's work factors: memory 128·n·r bytes, p passes. The default is one of OWASP's equal choices."""

    n: int = 2**14
    r: int = 8
    p: int = 5


COST = Cost()


def hash_password(password: str, cost: Cost = COST) -> str:
    """``scrypt:n:r:p:salt:hash`` (base64) with a new salt of 16 bytes."""
    salt = secrets.token_bytes(16)
    texts = (base64.b64encode(part).decode("ascii") for part in (salt, _scrypt(password, salt, cost)))
    return ":".join(["scrypt", *map(str, (cost.n, cost.r, cost.p)), *texts])


def check_password(password: str, hashed: str) -> bool:
    """Whether the password is the one of the hash; takes as long when it is not."""
    _, n, r, p, salt, expected = hashed.split(":")
    found = _scrypt(password, base64.b64decode(salt), Cost(int(n), int(r), int(p)))
    return hmac.compare_digest(found, base64.b64decode(expected))


def _scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    memory = 128 * cost.r * (cost.n + cost.p + 2)
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=cost.n, r=cost.r, p=cost.p, maxmem=2 * memory, dklen=32)


def name_fault(name: str) -> str | None:
    """What is wrong with an account's name, if anything."""
    if NAME.fullmatch(name):
        return None
    return "a name has 1 to 40 letters, digits or . _ @ + -, and begins with a letter or digit"


def password_fault(password: str) -> str | None:
    """What is wrong with a new password, if anything."""
    if SHORTEST <= len(password) <= LONGEST:
        return None
    return f"a password has {SHORTEST} to {LONGEST} characters"


def read_password_file(path: str | Path) -> list[tuple[str, str, str]]:
    """(name, role, hash) of lines ``name:role:scrypt:n:r:p:salt:hash``; lines that begin with # are notes.

    ``align annotate users hash`` makes such lines. Raises DataError at the first bad line.
    """
    found: dict[str, tuple[str, str, str]] = {}
    for row, text in lines(path):
        if isinstance(text, DataError):
            raise text
        if text.startswith("#"):
            continue
        name, _, rest = text.partition(":")
        role, _, hashed = rest.partition(":")
        mend = "write NAME:ROLE:HASH, as align annotate users hash prints it"
        if name_fault(name) or role not in ROLES:
            rule = name_fault(name) or f"the role is {role!r}, not one of {', '.join(ROLES)}"
            raise row.locate(DataError(rule, mend=mend))
        if not _is_hash(hashed):
            raise row.locate(DataError("the password is no scrypt hash", mend=mend))
        if name in found:
            raise row.locate(DataError(f"{name!r} stands twice", mend="remove one of the lines"))
        found[name] = (name, role, hashed)
    return list(found.values())


def _is_hash(text: str) -> bool:
    parts = text.split(":")
    if len(parts) != 6 or parts[0] != "scrypt" or not all(part.isdecimal() for part in parts[1:4]):
        return False
    n, r, p = map(int, parts[1:4])
    # what ``hashlib.scrypt`` takes, and no more memory than a login may cost
    if n < 2 or n & (n - 1) or not 1 <= r <= 32 or not 1 <= p <= 64 or 128 * n * r > 2**28:
        return False
    try:
        return all(base64.b64decode(part, validate=True) for part in parts[4:])
    except binascii.Error:
        return False
