"""Handling of SIGTERM and SIGINT: finish the step, keep the checkpoint, tell how to resume.

Lightning exits with status 0 on SIGTERM and with status 1 on SIGINT, both without a message; its
handlers are therefore replaced during training.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import lightning as L

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Halt(BaseException):
    """Raised inside the training to end it.

    Not a KeyboardInterrupt, which Lightning would turn into `sys.exit(1)`.
    """


class StopSignals:
    """Handle SIGTERM and SIGINT within a `with` block; restore the earlier handlers after it.

    Outside of training steps a signal raises `Halt` at once. Between `begin_steps` and
    `end_steps` the first signal is only recorded; a second one ends the process (SIGTERM) or
    the training (SIGINT) at once. Ignored signals, as in background jobs of a shell, stay ignored.
    Does nothing outside the main thread, where Python cannot install signal handlers.

    Attributes:
        received: number of the first signal; None before it.
        epoch: the current or last finished epoch, from 1.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.epoch = 1
        self._before: dict[int, Any] = {}
        self._stepping = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                n: h for n in SIGNALS if (h := signal.getsignal(n)) is not signal.SIG_IGN
            }
            self._take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin_steps(self) -> None:
        """Only record signals from now on; replace handlers installed since `__enter__`."""
        self._stepping = True
        self._take()

    def end_steps(self) -> None:
        """Let signals raise `Halt` at once again.

        Raises:
            Halt: if a signal was recorded since `begin_steps`.
        """
        self._stepping = False
        self._take()
        if self.received is not None:
            raise Halt

    def _take(self) -> None:
        for number in self._before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        first = self.received is None
        if first:
            self.received = number
        if first and self._stepping:
            return
        if number == signal.SIGTERM and not first:
            os._exit(128 + number)  # a second signal means: do not wait for the step
        raise Halt


class StopBetweenSteps(L.Callback):
    """End the training after the step in which a signal was received.

    If it was the last step of an epoch, the epoch is completed and saved first. With several
    processes, all of them stop at the same step.

    Args:
        signals: the signal handler.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace Lightning's signal handlers."""
        self._signals.begin_steps()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop after a signal, except after an epoch's last step, so that it is saved first."""
        if self._wanted(trainer) and not trainer.is_last_batch:
            raise Halt

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after a signal, once the previous epoch is saved."""
        if self._wanted(trainer):
            raise Halt
        self._signals.epoch = trainer.current_epoch + 1

    def _wanted(self, trainer: L.Trainer) -> bool:
        here = self._signals.received is not None
        if trainer.world_size == 1:
            return here
        return bool(trainer.strategy.reduce_boolean_decision(here, all=False))
