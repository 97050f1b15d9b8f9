"""Tenants: the settings in force, whose key is whose, and taking up an edited file."""

import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RevokedKeyError, TenantsFileError, UnknownKeyError
from app.keys import ApiKey, hash_secret, new_key
from app.settings import TenantSettings
from app.tenants import TenantDirectory, open_directory, tenant_salt
from app.tenants_file import KeyRecord, add_key, edit_tenants_file, revoke_key
from scheduler.shares import ServiceClass, TenantShare

NOW = datetime(2026, 5, 1, tzinfo=UTC)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_key(path: Path, tenant: str, weight: float | None = None) -> ApiKey:
    key = new_key()
    record = KeyRecord(id=key.key_id, hash=hash_secret(key.secret), created=NOW)
    edit_tenants_file(path, lambda before: add_key(before, tenant, record, weight))
    return key


def revoke(path: Path, key: ApiKey) -> None:
    edit_tenants_file(path, lambda before: revoke_key(before, key.key_id, NOW))


def accepted(directory: TenantDirectory, keys: Iterable[ApiKey]) -> list[ApiKey]:
    taken = []
    for key in keys:
        try:
            directory.tenant_of_key(key.text)
        except (UnknownKeyError, RevokedKeyError):
            continue
        taken.append(key)
    return taken


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


def test_a_key_names_its_tenant(path: Path) -> None:
    """A request with a key is its tenant's, whichever of the tenant's keys it is."""
    alice, alice_too, bob = make_key(path, "alice"), make_key(path, "alice"), make_key(path, "bob")
    directory = TenantDirectory(path)

    tenants = [directory.tenant_of_key(key.text) for key in (alice, alice_too, bob)]

    assert tenants == ["alice", "alice", "bob"]


def test_an_id_with_another_keys_secret_opens_nothing(path: Path) -> None:
    """Both halves of a key must be of the same key."""
    alice, bob = make_key(path, "alice"), make_key(path, "bob")
    directory = TenantDirectory(path)

    with pytest.raises(UnknownKeyError):
        directory.tenant_of_key(ApiKey(alice.key_id, bob.secret).text)


def test_a_revoked_key_says_so_only_to_its_holder(path: Path) -> None:
    """Whoever has the whole key learns that it was revoked; its id alone tells nothing."""
    key = make_key(path, "alice")
    revoke(path, key)
    directory = TenantDirectory(path)

    with pytest.raises(RevokedKeyError):
        directory.tenant_of_key(key.text)
    with pytest.raises(UnknownKeyError):
        directory.tenant_of_key(ApiKey(key.key_id, new_key().secret).text)


def test_weights_are_the_files_and_else_the_default(path: Path) -> None:
    """A tenant weighs what the file says of it; unnamed and unweighted ones weigh the default."""
    path.write_text(
        "default_weight: 3\ntenants:\n  alice: {weight: 2}\n  bob: {keys: []}\n", encoding="utf-8"
    )
    directory = TenantDirectory(path)

    assert directory.shares == {"alice": TenantShare(2.0), "bob": TenantShare(3.0)}
    assert directory.share_of("nobody") == directory.default_share == TenantShare(3.0)


def test_what_a_tenant_leaves_out_is_the_defaults(path: Path) -> None:
    """Class and limits as much as the weight; `unlimited` is no limit whatever the default."""
    path.write_text(
        "default_weight: 3\ndefault_class: batch\n"
        "default_tokens_per_minute: 1000\ndefault_max_concurrent: 4\n"
        "tenants:\n"
        "  alice: {class: interactive, tokens_per_minute: 50}\n"
        "  bob: {tokens_per_minute: unlimited, max_concurrent: unlimited}\n",
        encoding="utf-8",
    )
    directory = TenantDirectory(path)

    interactive, batch = ServiceClass.INTERACTIVE, ServiceClass.BATCH
    assert directory.share_of("alice") == TenantShare(3.0, interactive, 50, 4)
    assert directory.share_of("bob") == TenantShare(3.0, batch, None, None)
    assert directory.share_of("stranger") == TenantShare(3.0, batch, 1000, 4)


def test_the_settings_say_as_much_of_tenants_as_a_file() -> None:
    """Classes, limits and defaults of serve_config.yaml."""
    tenants = {"alice": TenantSettings.model_validate({"class": "batch", "max_concurrent": 2})}
    defaults = TenantSettings.model_validate({"weight": 3, "tokens_per_minute": 1000})

    directory = open_directory(None, tenants, defaults)

    assert directory.share_of("alice") == TenantShare(3.0, ServiceClass.BATCH, 1000, 2)
    assert directory.default_share == TenantShare(3.0, ServiceClass.INTERACTIVE, 1000, None)


def test_new_limits_are_taken_up_while_running(path: Path) -> None:
    """At the next look; a limit that would let nothing in leaves the old one in force."""
    clock = Clock()
    path.write_text("tenants: {alice: {max_concurrent: 2}}\n", encoding="utf-8")
    directory = TenantDirectory(path, clock=clock)

    for content, limit in (("5", 5), ("0", 5), ("unlimited", None)):
        path.write_text(f"tenants: {{alice: {{max_concurrent: {content}}}}}\n", encoding="utf-8")
        clock.now_s += 1
        directory.refresh()
        assert directory.share_of("alice").max_concurrent == limit
        assert (directory.last_error is None) == (content != "0")


def test_without_a_file_keys_are_off_and_the_settings_weights_count() -> None:
    """No tenants file means the tenants of serve_config.yaml and no keys."""
    directory = open_directory(None, {"alice": TenantSettings(weight=2.0)})

    directory.refresh()

    assert not directory.keys_required
    assert [directory.share_of(name).weight for name in ("alice", "bob")] == [2.0, 1.0]


def test_keys_are_required_unless_the_file_says_otherwise(path: Path) -> None:
    """A file that does not mention it is closed."""
    path.write_text("tenants: {}\n", encoding="utf-8")
    assert open_directory(path, {}).keys_required

    path.write_text("keys_required: false\n", encoding="utf-8")
    assert not open_directory(path, {}).keys_required


def test_starting_with_a_broken_file_is_an_error(path: Path) -> None:
    """At start there are no earlier settings to fall back on, so a bad file stops it."""
    path.write_text("keys_required: perhaps\n", encoding="utf-8")

    with pytest.raises(TenantsFileError, match="keys_required"):
        TenantDirectory(path)


def test_an_edit_takes_effect_at_the_next_look(path: Path) -> None:
    """Keys made and revoked count from the next look on, and not before: one look a second."""
    clock = Clock()
    old = make_key(path, "alice")
    directory = TenantDirectory(path, clock=clock, recheck_s=1.0)
    new = make_key(path, "bob")
    revoke(path, old)

    clock.now_s += 0.9
    directory.refresh()
    assert accepted(directory, [old, new]) == [old]

    clock.now_s += 0.1
    directory.refresh()
    assert accepted(directory, [old, new]) == [new]


def test_a_key_removed_from_the_file_stops_working(path: Path) -> None:
    """Deleting a key's lines by hand is as good as revoking it."""
    clock = Clock()
    key = make_key(path, "alice")
    directory = TenantDirectory(path, clock=clock)

    path.write_text("tenants: {alice: {}}\n", encoding="utf-8")
    clock.now_s += 1
    directory.refresh()

    assert accepted(directory, [key]) == []


@pytest.mark.parametrize(
    "broken", ["", "tenants: [", "tenants: {alice: {weight: -1}}", "keys_requred: false", "\x00"]
)
def test_a_broken_edit_leaves_the_old_settings_in_force(path: Path, broken: str) -> None:
    """A file that fails its checks changes nothing but the error; mending it clears that."""
    clock = Clock()
    key = make_key(path, "alice", weight=2)
    sound = path.read_text(encoding="utf-8")
    directory = TenantDirectory(path, clock=clock)

    path.write_text(broken, encoding="utf-8")
    clock.now_s += 1
    directory.refresh()
    assert accepted(directory, [key]) == [key]
    assert (directory.keys_required, directory.share_of("alice").weight) == (True, 2.0)
    assert str(path) in str(directory.last_error)
    assert "stay in force" in str(directory.last_error)

    path.write_text(sound, encoding="utf-8")
    clock.now_s += 1
    directory.refresh()
    assert directory.last_error is None


def test_a_file_that_goes_away_leaves_the_old_settings_in_force(path: Path) -> None:
    """A deleted file locks nobody out and lets nobody in; when it is back it is taken up."""
    clock = Clock()
    key = make_key(path, "alice")
    directory = TenantDirectory(path, clock=clock)
    away = path.rename(path.with_suffix(".away"))

    clock.now_s += 1
    directory.refresh()
    assert accepted(directory, [key]) == [key]
    assert "no such file" in str(directory.last_error)

    away.rename(path)
    clock.now_s += 1
    directory.refresh()
    assert directory.last_error is None


def test_a_broken_file_is_reported_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that stays broken is one line in the log, not one a second."""
    clock = Clock()
    make_key(path, "alice")
    directory = TenantDirectory(path, clock=clock)
    path.write_text("tenants: 3\n", encoding="utf-8")

    for _ in range(5):
        clock.now_s += 1
        directory.refresh()

    assert len(caplog.records) == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("make"), st.sampled_from(["alice", "bob", "carol"])),
        st.tuples(st.just("revoke"), st.integers(min_value=0, max_value=30)),
    ),
    max_size=12,
)


@given(steps=STEPS)
def test_making_and_revoking_keys_touches_no_other_key(
    steps: list[tuple[str, str | int]],
) -> None:
    """After any sequence of edits exactly the keys made and not revoked work, each its tenant's."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tenants.yaml"
        made = [(make_key(path, "first"), "first")]
        works = [True]
        directory = TenantDirectory(path, clock=clock)
        for action, what in steps:
            if isinstance(what, str):
                made.append((make_key(path, what), what))
                works.append(True)
            else:
                revoke(path, made[what % len(made)][0])
                works[what % len(made)] = False
            clock.now_s += 1
            directory.refresh()

            expected = [pair for pair, is_open in zip(made, works, strict=True) if is_open]
            keys = accepted(directory, (key for key, _ in made))
            assert [(key, directory.tenant_of_key(key.text)) for key in keys] == expected, action


def test_no_tenants_salt_begins_with_anothers() -> None:
    """Salts are equally long, so what a client appends to its own cannot make it another's."""
    salts = [tenant_salt(name) for name in ("a", "ab", "a" * 64)]

    assert len(set(salts)) == 3
    assert len({len(salt) for salt in salts}) == 1
