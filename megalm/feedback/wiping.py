"""What was deleted goes from SQLite's log of changes, too, where it would stay while anybody reads."""

import contextlib
import logging
import sqlite3
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 30.0
"""Seconds between attempts."""
SILENT_SECONDS = 1.0
"""What lasts no longer is not worth a line of the log."""


class Wiper:
    """Of one file. A checkpoint that empties the log needs a moment in which nobody reads from it: it is tried until there is one."""

    def __init__(self, file: Path, in_turn: threading.Lock) -> None:
        """in_turn: held by whoever writes to the file in this process."""
        self._file, self._in_turn = file, in_turn
        self._address = f"{file.absolute().as_uri()}?mode=rw"
        self._state = threading.Lock()
        self._is_wanted = False
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def wipe(self) -> None:
        """At once where that can be; else a thread goes on with it."""
        if self._attempt():
            return
        with self._state:
            self._is_wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="wiping", daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> bool:
        """Whether all is gone, at the latest after `seconds`; it is not tried any longer."""
        with self._state:
            thread = self._thread
        if thread is not None:
            thread.join(seconds)
        self._closing.set()
        with self._state:
            is_done = self._thread is None
        if not is_done:
            logger.warning(
                "what was deleted is still in %s-wal: it goes when that is opened again", self._file
            )
        return is_done

    def _go_on(self) -> None:
        pause, waited = FIRST_PAUSE, 0.0
        while not self._closing.wait(pause):
            waited += pause
            with self._state:
                self._is_wanted = False
            is_done = self._attempt()
            with self._state:
                if is_done and not self._is_wanted:  # nothing was deleted since
                    self._thread = None
                    break
            if waited > SILENT_SECONDS:
                logger.warning(
                    "what was deleted is still in %s-wal, which somebody reads: trying again", self._file
                )
            pause = min(2 * pause, LONGEST_PAUSE)
        if self._thread is None and waited > SILENT_SECONDS:
            logger.info("what was deleted is gone from %s-wal", self._file)

    def _attempt(self) -> bool:
        """Whether the log is empty now. Nobody waits for readers here: those who write would wait, too."""
        try:
            with (
                self._in_turn,
                contextlib.closing(sqlite3.connect(self._address, uri=True, timeout=0)) as connection,
            ):
                is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            logger.warning("%s-wal cannot be emptied: %s", self._file, error)
            return False
        return not is_busy
