"""Ctrl-C and SIGTERM during a run."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """While steps are taken, the first signal asks the loop to end after its step and to save. Before and after the
    steps, and the second time, it aborts at once.

    A thread that is not the main one hears of no signals, and changes nothing.

    Attributes:
        training: whether steps are being taken; the display sets it.
        asked: whether the loop was asked to end.
    """

    def __init__(self, training: bool = False) -> None:
        self.training = training
        self.asked = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """What the loop asks after each step."""
        return self.asked

    def __enter__(self) -> Interrupt:
        here = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM) if here else ():
            if signal.getsignal(number) is signal.SIG_IGN:  # it is another process's to say: see engines
                continue
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.training:
            raise KeyboardInterrupt
        self.asked = True
