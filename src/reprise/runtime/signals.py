"""Signals: the first asks the process to stop, a second Ctrl-C ends it at once; a stage ends when its DVC has died.

Exit codes are the shell's: 128 + signal, 130 for Ctrl-C, 143 for SIGTERM, so that DVC never records an unfinished run.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Self

PARENT = os.getppid()  # as early as can be: it may die while the stage is still importing
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """A signal asked the process to stop; uncaught, it ends it with exit code 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.name = signal.Signals(signum).name


class StopSignals:
    """While entered, a signal raises `Stopped`: at once or, if `deferred`, at the end; `received` holds it until then.

    Signals that the process was started to ignore (nohup) stay ignored; outside the main thread nothing is changed.
    """

    def __init__(self, deferred: bool = False) -> None:
        self.deferred = deferred
        self.received: int | None = None
        self.interrupted = False
        self.before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self.before = {signum: old for signum, old in self.before.items() if old is not signal.SIG_IGN}
            self.listen()
        return self

    def listen(self) -> None:
        """Handle the signals; also resumes after `rest`."""
        for signum in self.before:
            signal.signal(signum, self._handle)

    def rest(self) -> None:
        """Let signals end the process at once, while it waits in code that runs no Python and has nothing to lose."""
        for signum in self.before:
            signal.signal(signum, signal.SIG_DFL)
        if self.received is not None:
            raise Stopped(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            if self.interrupted:
                os._exit(128 + signum)
            self.interrupted = True
        self.received = signum
        if not self.deferred:
            raise Stopped(signum)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, old in self.before.items():
            signal.signal(signum, old)  # type: ignore[arg-type]
        if self.deferred and self.received is not None and kind is None:
            raise Stopped(self.received)


def stop_with_parent(poll_s: float = 0.5, again_s: float = 60) -> None:
    """Send this process SIGTERM once its parent has died: nobody would record what it still produced.

    Again after a while, should the first one have come where Python drops exceptions.
    """

    def watch() -> None:
        while os.getppid() == PARENT and not _adopted():
            time.sleep(poll_s)
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(again_s)

    threading.Thread(target=watch, daemon=True).start()


def _adopted() -> bool:
    """Return whether the parent was dead before PARENT was read: init, which starts no stage, is the parent."""
    try:
        return PARENT == 1 and not Path("/proc/1/comm").read_text().startswith(("dvc", "python"))
    except OSError:  # not Linux
        return False
