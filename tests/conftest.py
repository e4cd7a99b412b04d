"""What several tests share: the smoke report, made once, as a user makes it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Kbit = Callable[..., subprocess.CompletedProcess[str]]


def kbit_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kbitlib.cli", *arguments]


@pytest.fixture(scope="session")
def kbit() -> Kbit:
    """Run ``kbit`` with a store of one's own."""

    def call(*arguments: str, store: Path | None = None, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        environment = os.environ | ({"KBIT_STORE": str(store)} if store else {})
        return subprocess.run(
            kbit_command(*arguments), env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return call


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, kbit: Kbit) -> Path:
    """The folder of the smoke report, all chapters run."""
    store = tmp_path_factory.mktemp("smoke") / "store"
    done = kbit("run", "--profile", "smoke", store=store)
    assert done.returncode == 0, done.stdout + done.stderr
    return store.parent
