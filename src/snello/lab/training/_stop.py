"""SIGTERM and SIGINT: the step is finished, what is saved stays, and the run says how to go on.

Lightning turns the first into an exit with status 0 and the second into one with status 1, both
without a word; so its handlers are replaced while it trains.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import lightning as L

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Halt(BaseException):
    """End a training from within.

    It is no KeyboardInterrupt, which Lightning answers with ``sys.exit(1)``.
    """


class StopSignals:
    """Receive SIGTERM and SIGINT within a ``with`` block; earlier handlers come back after it.

    Outside of steps a signal raises :class:`Halt` at once. Between :meth:`begin_steps` and
    :meth:`end_steps` the first one is only noted, and the second ends the process (SIGTERM) or the
    training (SIGINT) at once. Signals that are ignored, as in jobs in the background of a shell,
    stay ignored. In threads other than the main one nothing happens: Python has no signals there.

    Attributes:
        received: the number of the first signal; None before it.
        epoch: the epoch that is under way or has just ended, from 1.
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
        """Only note signals from now on; replace handlers that were installed in the meantime."""
        self._stepping = True
        self._take()

    def end_steps(self) -> None:
        """From now on a signal ends what is going on.

        Raises:
            Halt: if one has come in the meantime.
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
            os._exit(128 + number)  # a second signal asks for an end at once
        raise Halt


class StopBetweenSteps(L.Callback):
    """End the training after the step, or the epoch, in which a signal came.

    After the last step of an epoch the epoch is completed and saved first. With several processes
    all of them stop at the same step.

    Args:
        signals: what receives them.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals over from Lightning."""
        self._signals.begin_steps()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """End here, unless the epoch ends here too."""
        if self._wanted(trainer) and not trainer.is_last_batch:
            raise Halt

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End before the next epoch, after the last one was saved."""
        if self._wanted(trainer):
            raise Halt
        self._signals.epoch = trainer.current_epoch + 1

    def _wanted(self, trainer: L.Trainer) -> bool:
        here = self._signals.received is not None
        if trainer.world_size == 1:
            return here
        return bool(trainer.strategy.reduce_boolean_decision(here, all=False))
