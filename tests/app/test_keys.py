"""API keys: what is kept of one, and what is recognised by it."""

import re

import pytest

from app.errors import UnknownKeyError
from app.keys import KEY_HASH_PATTERN, KEY_ID_PATTERN, hash_secret, is_secret_of, new_key, parse_key


def test_a_key_survives_being_written_down() -> None:
    """The text a tenant is given reads back as the same key."""
    key = new_key()

    assert parse_key(key.text) == key


def test_only_the_right_secret_matches_its_hash() -> None:
    """A hash is matched by the secret it was made of and by no other."""
    key, other = new_key(), new_key()
    kept = hash_secret(key.secret)

    assert is_secret_of(kept, key.secret)
    assert not is_secret_of(kept, other.secret)


def test_neither_hash_nor_repr_shows_the_secret() -> None:
    """What is kept in files and what a log may print of a key does not give it away."""
    key = new_key()

    assert key.secret not in hash_secret(key.secret)
    assert key.secret not in repr(key)


def test_the_same_secret_is_kept_differently_each_time() -> None:
    """Two hashes of one secret cannot be seen to be of one secret."""
    assert hash_secret("s") != hash_secret("s")


def test_new_keys_fit_the_tenants_file() -> None:
    """Ids and hashes have the form that the tenants file asks for."""
    key = new_key()

    assert re.search(KEY_ID_PATTERN, key.key_id)
    assert re.search(KEY_HASH_PATTERN, hash_secret(key.secret))


@pytest.mark.parametrize(
    "text",
    ["", "fs-", "sk-1234", "fs-3f2a90c4d1e8-tooshort", f"fs-3f2a90c4d1e8-{'0' * 65}", "é" * 80],
)
def test_text_of_another_form_is_no_key(text: str) -> None:
    """Whatever a client sends instead of a key is refused as unknown."""
    with pytest.raises(UnknownKeyError):
        parse_key(text)
