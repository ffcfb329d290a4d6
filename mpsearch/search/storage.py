"""Where Optuna's studies are kept."""

from __future__ import annotations

import optuna

from ..errors import InputError


def check_storage(url: str | None) -> None:
    """Fail early where Optuna cannot keep a study.

    Raises
    ------
    InputError
        If it cannot be opened.
    """
    if url is None:
        return
    try:
        optuna.storages.get_storage(url)
    except Exception as error:  # whatever the database's driver raises
        reason = str(error).splitlines()[0]
        raise InputError(
            f"storage {url!r} cannot be opened ({reason}); give a URL such as sqlite:///study.db"
        ) from error
