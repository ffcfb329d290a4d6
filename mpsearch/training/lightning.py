"""A callback for Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ..package.config import Config
from .watch import Watch


class PrecisionCallback(Callback):
    """Checks a stored choice every so many epochs, logs what it finds, and searches at the end.

    Parameters
    ----------
    every
        How many epochs from one check to the next.
    part
        What of the ``LightningModule`` is converted; default: all of it.
    data, config, budget, options
        As for :class:`mpsearch.training.watch.Watch`, which ``watch`` is.

    In several processes the first one checks, and the others wait for it at their next step.
    """

    def __init__(
        self,
        data: Any,
        config: Config | str | Path | None = None,
        budget: float | None = None,
        *,
        every: int = 1,
        part: Callable[[LightningModule], Any] = lambda module: module,
        **options: Any,
    ) -> None:
        self.watch = Watch(data, config, budget, **options)
        self._every = every
        self._part = part

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and (trainer.current_epoch + 1) % self._every == 0:
            self._log(trainer, self.watch.look(self._part(pl_module)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._log(trainer, self.watch.finish(self._part(pl_module)))

    @staticmethod
    def _log(trainer: Trainer, found: dict[str, float]) -> None:
        for logger in trainer.loggers if found else ():
            logger.log_metrics(found, step=trainer.global_step)
