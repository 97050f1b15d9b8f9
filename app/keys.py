"""API keys: made once, shown once, kept only as a salted hash.

Owns the text of a key (``fs-<id>-<secret>``), its hash and the comparison; knows no tenant, no file
and no HTTP. The id is no secret: it names the key in lists and lets a request be checked against
one hash instead of all.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from app.errors import UnknownKeyError

KEY_ID_PATTERN = r"^[0-9a-f]{12}$"
KEY_HASH_PATTERN = r"^sha256:[0-9a-f]{32}:[0-9a-f]{64}$"

_KEY_TEXT = re.compile(r"fs-([0-9a-f]{12})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key in the clear: only between its making and its printing, or inside one request."""

    key_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        return f"fs-{self.key_id}-{self.secret}"


def new_key() -> ApiKey:
    return ApiKey(key_id=secrets.token_hex(6), secret=secrets.token_hex(32))


def parse_key(text: str) -> ApiKey:
    """The key that a client sent.

    Raises:
        UnknownKeyError: the text is not of the form every key has.
    """
    match = _KEY_TEXT.fullmatch(text)
    if match is None:
        raise UnknownKeyError
    return ApiKey(*match.groups())


def hash_secret(secret: str) -> str:
    """The secret as it is kept: ``sha256:<salt>:<digest>``, with a new salt each time."""
    salt = secrets.token_hex(16)
    return f"sha256:{salt}:{_digest(salt, secret)}"


def is_secret_of(kept: str, secret: str) -> bool:
    """Whether ``kept`` is the hash of this secret; takes the same time wherever they differ."""
    _, salt, digest = kept.split(":")
    return hmac.compare_digest(digest, _digest(salt, secret))


def _digest(salt: str, secret: str) -> str:
    # One round of SHA-256, where a password would need scrypt: the secret is 256 random bits, so
    # there is nothing to guess, and a slow hash would only slow down every request. The salt keeps
    # tables made for other files from being of use.
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()
