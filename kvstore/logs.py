"""Log lines of the daemon: text for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
from typing import Literal, TextIO

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """`time` (seconds since 1970), `level`, `logger`, `message`, and `error` with the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message has in it."""
        fields = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def set_up(stream: TextIO, kind: Literal["text", "json"]) -> logging.Handler:
    """Send what kvstore logs, from INFO on, to `stream`; the handler, to be removed by who wants it gone."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if kind == "json" else logging.Formatter(TEXT))
    logger = logging.getLogger("kvstore")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler
