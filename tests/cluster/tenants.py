"""The server's tenants file, edited while it serves, with the program's own ``fastswitch keys``."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.tenants_file import TenantRecord, TenantsFile, edit_tenants_file
from tests.cluster.program import FASTSWITCH, Program, wait_until

LIGHT, HEAVY = "light", "heavy"  # of weight 1 and 2
TAKEN_UP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Tenants:
    """Whom the server knows. ``operator_key`` opens it whether keys are required or not."""

    path: Path
    operator_key: str

    @classmethod
    def write(cls, path: Path) -> "Tenants":
        weights = {LIGHT: TenantRecord(weight=1.0), HEAVY: TenantRecord(weight=2.0)}
        edit_tenants_file(path, lambda _: TenantsFile(keys_required=False, tenants=weights))
        return cls(path, make_key(path, "operator"))

    @contextmanager
    def requiring_keys(self, program: Program) -> Iterator[None]:
        """Within it the server asks for keys."""
        self._require_keys(program, status=401, is_required=True)
        try:
            yield
        finally:
            self._require_keys(program, status=200, is_required=False)

    def _require_keys(self, program: Program, *, status: int, is_required: bool) -> None:
        edit_tenants_file(
            self.path, lambda before: before.model_copy(update={"keys_required": is_required})
        )
        wait_until(
            lambda: httpx.get(f"{program.url}/v1/models").status_code == status,
            f"without a key the answer is {status}",
            within_s=TAKEN_UP_WITHIN_S,
        )


def make_key(path: Path, tenant: str) -> str:
    """A new key, made as an operator makes it."""
    return _keys("make", tenant, "--file", str(path)).strip()


def revoke_key(path: Path, key: str) -> None:
    """Take a key back, as an operator does."""
    _, key_id, _ = key.split("-", 2)
    _keys("revoke", key_id, "--file", str(path))


def _keys(*arguments: str) -> str:
    command = [str(FASTSWITCH), "keys", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
