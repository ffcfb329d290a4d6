"""``python -m mpsearch``."""

from .cli import main

main()
