"""The tests and the demo from a wheel, for every Python that mpsearch is for.

    nox                         # all of them, as far as the interpreters are there
    nox -s "wheel-3.13(pinned)" # one

``TORCH`` names the torch to install; by default the one that constraints.txt pins.
"""

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
#: What is tested beside the wheel; the package's own folders must not stand there.
BESIDE = ["tests", "examples", "benchmarks", "docs", "README.md", "pyproject.toml", "Makefile"]


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("versions", ["pinned", "newest"])
def wheel(session: nox.Session, versions: str) -> None:
    """With the versions of constraints.txt, or the newest that ``pyproject.toml`` allows."""
    pinned = ["-c", str(ROOT / "constraints.txt")]
    made = Path(session.create_tmp()).resolve()
    for path in made.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    session.run("pip", "wheel", "-q", "--no-deps", "-w", str(made), str(ROOT))
    (found,) = made.glob("mpsearch-*.whl")
    session.install(
        "-q", *([] if "TORCH" in os.environ else pinned), os.environ.get("TORCH", "torch")
    )
    session.install("-q", *(pinned if versions == "pinned" else []), f"{found}[test,examples]")
    for name in BESIDE:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, made / name)
    session.chdir(made)
    session.run(
        *("mpsearch", "optimize", "examples.minilm:build", "--inputs", "examples.minilm:samples"),
        *("--metric", "max_abs", "--budget", "1e-2", "--out", "minilm-mixed"),
    )
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["-n", "auto"]))
