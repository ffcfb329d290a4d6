"""A callback for Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from .watch import Watch


class PrecisionCallback(Callback):
    """Checks a stored choice every so many epochs, logs what it finds, and searches at the end.

    Parameters
    ----------
    watch
        What it asks, and what that found.
    every
        How many epochs from one check to the next.
    part
        What of the ``LightningModule`` is converted; default: all of it.

    In several processes the first one checks, and the others wait for it at their next step.
    """

    def __init__(
        self,
        watch: Watch,
        every: int = 1,
        part: Callable[[LightningModule], Any] = lambda module: module,
    ) -> None:
        self.watch = watch
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
