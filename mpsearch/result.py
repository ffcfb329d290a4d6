"""What ``optimize`` answers: what a search found, shown and written."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from . import files
from ._ct import ct, quiet
from .errors import InfeasibleError, InputError
from .files import printable, read_json
from .package import emission
from .package.config import Config
from .report import html, text
from .results import unfinished
from .results.answer import Answer
from .results.data import OpRow, ResultData
from .temporary import TemporaryFolder
from .usercode import reason

PACKAGE = "model.mlpackage"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Files:
    """What a result is written from.

    Attributes
    ----------
    directory
        Where the package is; None where there is none.
    selector_source
        The text of ``op_selector.py``.
    """

    config: Config
    selector_source: str
    directory: TemporaryFolder | None


class Result(ResultData, frozen=True, kw_only=True, dict=True):
    __doc__ = ResultData.__doc__

    @property
    def op_selector(self) -> emission.Selector:
        """For ``ct.transform.FP16ComputePrecision(op_selector=...)``: True = cast to FP16."""
        return emission.selector(self.fp32_ops)

    # -- for people ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        names = ", ".join(self.fp32_ops[:4])
        more = f" and {len(self.kept) - 4} more" if len(self.kept) > 4 else ""
        lines = [
            f"Result: {self.status}, {len(self.kept)} of {self.candidate_ops} ops in FP32",
            f"  {self.metric} {text.value(self.error)}, budget {self.budget:g}, held-out "
            f"{text.value(self.heldout_error)}, all FP16 {text.value(self.error_fp16)}",
        ]
        return printable("\n".join([*lines, *([f"  {names}{more}"] if names else [])]))

    def summary(self) -> str:
        """What ``mpsearch optimize`` prints, as plain text of 78 columns."""
        return text.summary(self, None, lambda line, mood: line)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html.notebook(self.as_dict(), self.met)

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame`` of all candidate ops, by name, in execution order.

        Its columns are those of :class:`OpRow`.

        Raises
        ------
        ImportError
            Without pandas.
        """
        import pandas  # not among what mpsearch needs

        rows = [msgspec.structs.asdict(row) for row in self.ops]
        columns = [field.name for field in msgspec.structs.fields(OpRow)]
        return pandas.DataFrame(rows, columns=columns).set_index("name")

    # -- what stands behind it -----------------------------------------------------------------

    def with_files(self, written: Files | None, study: Any) -> Result:
        """The same result, with what it can be saved from and the study of its search."""
        self.__dict__.update(_files=written, study=study)
        return self

    @property
    def study(self) -> Any:
        """Optuna's study with every evaluation; None for a result that was read from a file."""
        return self.__dict__.get("study")

    @property
    def config(self) -> Config | None:
        """What ``apply`` and ``check`` take; None where no set was found."""
        written = self._files
        return None if written is None else written.config

    @property
    def _files(self) -> Files | None:
        found: Files | None = self.__dict__.get("_files")
        return found

    @property
    def _in_a_line(self) -> str:
        return " ".join(self.explanation.split())

    def _package(self) -> Path:
        if self._files is None or self._files.directory is None:
            raise InfeasibleError(f"there is no package: {self._in_a_line}")
        return self._files.directory.path / PACKAGE

    @property
    def mlmodel(self) -> Any:
        """The mixed-precision ``MLModel``.

        Raises
        ------
        InfeasibleError
            If the budget could not be met.
        """
        with quiet():
            return ct.models.MLModel(str(self._package()))

    def as_dict(self) -> dict[str, Any]:
        """The content of ``result.json``. Infinite errors are null."""
        found = Answer.as_dict(self)
        return {**found, "fp32_ops": self.fp32_ops, "gap": self.gap}

    def save(self, path: str | Path, study: str | Path | None = None) -> Path:
        """Write the package, ``op_selector.py`` and the JSON files, and ``report.html``.

        ``study`` is an SQLite file with the study of the search, to be written with them.

        The folder appears as a whole or not at all; one written before is replaced. What was cut
        short never replaces what was finished, nor what is better: it is then written beside it,
        as ``PATH-interrupted``. Where there is no package, all else is written.

        Returns
        -------
        Path
            The folder written.

        Raises
        ------
        InfeasibleError
            If the budget could not be met.
        InputError
            If the folder cannot be written, or holds what mpsearch did not write.
        """
        source = self._files
        if source is None:
            raise InfeasibleError(f"there is nothing to write: {self._in_a_line}")
        target = self._place(Path(path))
        with files.written(target, files.foreign) as out:
            out.mkdir()
            if source.directory is not None:
                shutil.copytree(self._package(), out / PACKAGE)
            (out / "op_selector.py").write_text(source.selector_source, encoding="utf-8")
            if source.config.scales or source.config.rewrites:
                rescale = emission.rescale_source(source.config.rewrites, source.config.scales)
                (out / "rescale.py").write_text(rescale, encoding="utf-8")
            source.config.write(out / "precision.json")
            content = self.as_dict()
            (out / "result.json").write_bytes(
                msgspec.json.format(msgspec.json.encode(content)) + b"\n"
            )
            if study is not None:
                unfinished.copy(Path(study), out / unfinished.STUDY)
            self._write_report(out / "report.html", content)
            files.write_manifest(out, f"mpsearch {source.config.versions['mpsearch']}")
        return target

    def _write_report(self, path: Path, content: dict[str, Any]) -> None:
        """Write the report; that it cannot be drawn is no reason to lose what was found."""
        assert self._files is not None
        try:
            page = html.render(content, self._files.config.as_dict())
        except Exception as error:  # whatever the libraries that draw it make of the environment
            _LOGGER.warning(
                "report.html was not written (%s); mpsearch report DIR writes it", reason(error)
            )
        else:
            path.write_text(page, encoding="utf-8")

    def _place(self, path: Path) -> Path:
        """``path``, or a place beside it where the result there is the better one."""
        if self.status not in ("interrupted", "unwritten") or files.foreign(path) is not None:
            return path
        try:
            former = read(path / "result.json")
        except InputError:
            return path
        worse = former.status in ("interrupted", "unwritten")
        worse &= len(former.kept) >= len(self.kept)
        return path if worse else path.with_name(f"{path.name}-interrupted")


def read(path: str | Path) -> Result:
    """Read a ``result.json``.

    Raises
    ------
    InputError
        If the file is missing, is no JSON, or no result of this version.
    """
    file = Path(path)
    return Result.from_dict(read_json(file, "a result.json that optimize wrote"), str(file))
