"""A PostgreSQL server of one's own, in a temporary folder, on a socket there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def _program(name: str) -> str | None:
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return found or (str(places[-1]) if places else None)


class Server:
    """Started when made; can be stopped and started again."""

    def __init__(self) -> None:
        made, self._control = _program("initdb"), _program("pg_ctl")
        if made is None or self._control is None:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        self.folder = Path(tempfile.mkdtemp(prefix="mpsearch-postgres-"))
        # It refuses to run as root.
        self._as = {"user": "nobody"} if os.geteuid() == 0 else {}
        if self._as:
            os.chown(self.folder, pwd.getpwnam("nobody").pw_uid, -1)
        self._run(made, "-D", self.folder / "data", "-U", "mpsearch", "-A", "trust", "--no-sync")
        self.start()
        self.url = f"postgresql://mpsearch@/postgres?host={self.folder}"

    def _run(self, *argv: object) -> None:
        told = [str(a) for a in argv]
        subprocess.run(told, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, **self._as)

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        log = self.folder / "log"
        self._run(
            self._control, "-D", self.folder / "data", "-l", log, "-o", options, "-w", "start"
        )

    def stop(self) -> None:
        self._run(self._control, "-D", self.folder / "data", "-m", "immediate", "-w", "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
