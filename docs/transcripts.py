"""Runs the commands that the guides show and keeps what they print.

python docs/transcripts.py [names ...]
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

COMMANDS = {
    "stylegan2-analyze": "mpsearch analyze examples.stylegan2:build "
    "--inputs examples.stylegan2:samples --top 4",
    "stylegan2-optimize": "mpsearch optimize examples.stylegan2:build "
    "--inputs examples.stylegan2:samples --budget 1e-2 --out stylegan2-mixed",
    "conv_transpose-optimize": "mpsearch optimize examples.conv_transpose:build "
    "--inputs examples.conv_transpose:samples --budget 1e-2 --out decoder-mixed",
    "half_activations-optimize": "mpsearch optimize examples.half_activations:build "
    "--inputs examples.half_activations:samples --budget 5e-3 --out activations-mixed",
    "complex_division-analyze": "mpsearch analyze examples.complex_division:build "
    "--inputs examples.complex_division:samples",
    "complex_division-optimize": "mpsearch optimize examples.complex_division:build "
    "--inputs examples.complex_division:samples --budget 1e-2 --out division-mixed",
    "efficientvit-optimize": "mpsearch optimize examples.efficientvit:build "
    "--inputs examples.efficientvit:samples --budget 2e-2 --weight-dtype int8 --out vit-mixed",
    "efficientvit-pareto": "mpsearch pareto examples.efficientvit:build "
    "--inputs examples.efficientvit:samples --points 5",
    "minilm-optimize": "mpsearch optimize examples.minilm:build "
    "--inputs examples.minilm:samples --metric max_abs --budget 1e-2 --out minilm-mixed",
}


def run(name: str) -> None:
    """Run one command in an empty directory and write its transcript."""
    command = COMMANDS[name]
    words = [str(Path(sys.executable).parent / "mpsearch"), *shlex.split(command)[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "examples").symlink_to(ROOT / "examples")
        done = subprocess.run(
            words,
            cwd=scratch,
            env={"PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=True,
        )
    start = "$ " + command.replace(" --", " \\\n      --", 1)
    (HERE / "transcripts" / f"{name}.txt").write_text(f"{start}\n{done.stdout}")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or COMMANDS:
        run(chosen)
        print(f"wrote docs/transcripts/{chosen}.txt")
