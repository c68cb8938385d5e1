"""What was found and done, as JSON lines that are added to and never changed."""

import json
import logging
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from megalm.errors import UserError

logger = logging.getLogger(__name__)


class Audit:
    """The file; each line is with the system when `write` returns. For its owner alone to read."""

    def __init__(self, path: str | Path) -> None:
        """UserError where it cannot be written."""
        self.path = Path(path)
        try:
            os.close(self._open())
        except OSError as error:
            raise UserError(f"audit log {path}: {error.strerror}; choose another --moderation-log") from None

    def write(self, **told: Any) -> None:
        """Add a line, with the time. A file that cannot be written any more is told to the server's log."""
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds")} | told
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            file = self._open()  # each time: it may be moved away and begun anew
            try:
                os.write(file, data)  # at once, so that lines of two servers do not mix
            finally:
                os.close(file)
        except OSError as error:
            logger.error("the audit log %s cannot be written: %s", self.path, error.strerror)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
