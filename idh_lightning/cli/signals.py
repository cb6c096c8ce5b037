"""A stopped run ends in order, nothing half written and records closed; a killed one takes its workers along."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from idh_lightning.errors import Stopped
from idh_lightning.machine import is_first_process

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stops_on_signals() -> Iterator[None]:
    """Raise `Stopped` where SIGTERM or SIGINT arrives; a second signal ends the process at once.

    Outside of the main thread, where Python allows no handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(signal.Signals(number), told=is_first_process())


def end_with(parent: int) -> None:
    """Make this worker process end within a second after its parent, a process id, has, killed or not."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
