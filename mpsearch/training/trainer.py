"""A callback for the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .watch import Watch


class PrecisionCallback(TrainerCallback):
    """Checks a stored choice every so many steps, logs what it finds, and searches at the end.

    Parameters
    ----------
    watch
        What it asks, and what that found.
    every
        How many steps from one check to the next.
    log
        What is given the numbers, such as ``trainer.log``; it may be set once there is a trainer.
        Without it they are added to ``trainer.state.log_history``.

    In several processes the first one checks, and the others wait for it at their next step.
    """

    def __init__(
        self,
        watch: Watch,
        every: int = 500,
        log: Callable[[dict[str, float]], Any] | None = None,
    ) -> None:
        self.watch = watch
        self.log = log
        self._every = every

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        if state.is_world_process_zero and state.global_step % self._every == 0:
            self._tell(state, self.watch.look(given["model"]))

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        if state.is_world_process_zero:
            self._tell(state, self.watch.finish(given["model"]))

    def _tell(self, state: TrainerState, found: dict[str, float]) -> None:
        if not found:
            return
        if self.log is not None:
            self.log(found)
        else:
            state.log_history.append({**found, "step": state.global_step})
