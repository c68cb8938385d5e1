"""What the front and a model's world say to each other: JSON, a line a message, over a socket of this machine."""

import json
import select
import socket
from typing import Any

Message = dict[str, Any]

READY, FAILED, REFUSED, TOLD, EMBEDDED = "ready", "failed", "refused", "told", "embedded"
"""What a world says: it can be asked; it cannot be started; it does not take a request; this came of requests; vectors of texts."""
SUBMIT, EMBED, CANCEL, STOP = "submit", "embed", "cancel", "stop"
"""What it is told."""
_CHUNK = 1 << 16


def encode(message: Message) -> bytes:
    """The message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Link:
    """A world's end, used by its rank 0 between two steps of the model."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._rest = b""

    def send(self, *messages: Message) -> None:
        """Say them in their order."""
        if messages:
            self._socket.sendall(b"".join(map(encode, messages)))

    def receive(self, seconds: float) -> list[Message]:
        """What has come; waits for so long where nothing has. STOP where the front is gone."""
        found: list[Message] = []
        while select.select([self._socket], [], [], 0.0 if found else seconds)[0]:
            read = self._socket.recv(_CHUNK)
            if not read:
                return [*found, {"op": STOP}]
            *lines, self._rest = (self._rest + read).split(b"\n")
            found += [json.loads(line) for line in lines]
            if not lines:
                continue  # a long message is on its way
        return found
