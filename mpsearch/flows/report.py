"""``mpsearch report``: ``report.html`` anew, from what ``optimize`` wrote."""

from __future__ import annotations

from pathlib import Path

from .. import result
from ..errors import InputError
from ..files import listed, written
from ..package import config
from ..report import html
from ..usercode import reason


def write(folder: str | Path) -> Path:
    """Write ``report.html`` into a directory that ``optimize`` wrote.

    Raises
    ------
    InputError
        If the directory holds no result, or it cannot be written.
    """
    place = Path(folder)
    settings, found = config.read(place), result.read(place / "result.json")
    target = place / "report.html"
    try:
        text = html.render(found.as_dict(), settings.as_dict())
    except Exception as error:  # whatever an edited file makes of the template and the charts
        raise InputError(
            f"{place / 'result.json'} is no result of this version ({reason(error)}); run mpsearch "
            "optimize again"
        ) from error
    with written(target, _foreign) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return target


def _foreign(report: Path) -> str | None:
    mine = report.is_file() and report.name in listed(report.parent)
    return None if mine else "mpsearch did not write it"
