"""JSON log lines on stderr that never block a call (R6).

Every logger of the process ends here: ours, the SDK's, uvicorn's. A line is a JSON object with `time` (RFC 3339, UTC),
`level`, `event`, `logger`, and inside a call `request_id`, `tool` and `reference`. Extra fields come from
`logger.info("event", extra={"key": value})`. Values that look like secrets are replaced.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

log_context: ContextVar[dict[str, object] | None] = ContextVar("log_context", default=None)
"""Fields that are added to every line logged inside the current call."""

REDACTED: Final = "[redacted]"
_FLUSH_INTERVAL_S = 0.02
_FRAMEWORKS = ("mcp", "uvicorn", "httpx2")
_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)?$|pwd$|secret|token$|api[_-]?key|auth(orization)?$|credential|cookie|private[_-]?key",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(  # every repetition is bounded or anchored, so that the time is linear in the text's length
    r"(?P<scheme>\bauthorization[\"']?\s{0,4}[=:]\s{0,4}[\"']?(?:[a-z]{1,20}\s{1,4})?|\bbearer\s{1,4})[\w\-.~+/=]{6,}"
    r"|(?P<basic>\bbasic\s{1,4})(?-i:(?=[\w+/]{1,200}?[A-Z\d+/=]))[a-z\d+/]{8,}={0,2}"
    r"|(?P<user>://[^/\s:@]{0,256}:)[^/\s]{1,2048}(?=@)"
    r"|(?P<key>(?:password|passwd|passphrase|pwd|secret|token(?!s)|credential|(?:api|access|private)[_-]?key)"
    r"[\w-]{0,64}[\"']?\s{0,4}[=:]\s{0,4})"
    r"(?:\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?|[^\s\"',;&]+)"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
    r"|\b(?:sk|pk|ghp|gho|ghs|github_pat|glpat|xox[abps])[-_][\w-]{12,}"
    r"|\bAKIA[0-9A-Z]{12,}"
    r"|\bmcp_[\w-]{43}(?![\w-])",  # of `static_tokens`
    re.IGNORECASE,
)
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


def redact(text: str) -> str:
    """`text` with everything that looks like a credential replaced by `[redacted]`."""
    return _SECRET_TEXT.sub(lambda m: (m["scheme"] or m["basic"] or m["user"] or m["key"] or "") + REDACTED, text)


def _plain(key: str, value: object) -> object:
    """A JSON value for `value`, redacted by its key and by its text."""
    if _SECRET_KEY.search(key):
        return REDACTED
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(key, item) for item in value]
    return redact(str(value))


class JsonFormatter(logging.Formatter):
    """One line of JSON per record; line breaks in texts are escaped, so a line is always one event."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        seconds = int(record.created)
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": redact(record.getMessage()),
            "logger": record.name,
        }
        if context := log_context.get():
            line.update(context)
        for key, value in record.__dict__.items():
            if key not in _STANDARD_FIELDS:
                line.setdefault(key, _plain(key, value))
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str, ensure_ascii=False)


class BackgroundHandler(logging.Handler):
    """Writes lines from a daemon thread.

    A terminal that is paused or a pipe that nobody reads blocks a write for ever; here it costs at most `capacity`
    lines of memory. When that is reached the oldest lines are dropped, and their number is logged.
    """

    def __init__(self, fd: int, *, capacity: int = 10_000) -> None:
        super().__init__()
        self._fd = fd
        self._lines: deque[str] = deque(maxlen=capacity)
        self._queued = 0
        self._settled = 0
        self._wake = threading.Event()
        threading.Thread(target=self._write_lines, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line. Never blocks, never raises. The caller holds the handler's lock."""
        try:
            line = self.format(record)
        except Exception as error:
            event = "a log line could not be written"
            line = json.dumps({"level": "error", "event": event, "error": type(error).__name__})
        self._lines.append(line)
        self._queued += 1
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout_s: float = 0.5) -> None:
        """Wait until everything queued so far is written, at most `timeout_s` seconds."""
        target, give_up = self._queued, time.monotonic() + timeout_s
        while self._settled < target and time.monotonic() < give_up:
            time.sleep(0.002)

    def _write_lines(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(_FLUSH_INTERVAL_S)  # collects a burst into one write instead of one thread switch a line
            self._wake.clear()
            self.acquire()
            lines, self._lines = self._lines, deque(maxlen=self._lines.maxlen)
            queued = self._queued
            self.release()
            text = "".join(line + "\n" for line in lines)
            if dropped := queued - self._settled - len(lines):
                text += json.dumps({"level": "warning", "event": "log lines dropped", "count": dropped}) + "\n"
            self._write(text)
            self._settled = queued

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # some clients hand over pipes in non-blocking mode
                select.select([], [self._fd], [])
            except OSError:
                return  # stderr is gone; there is nowhere left to say so


class OncePerSecond(logging.Filter):
    """Lets one warning a second through: for a logger that whoever sends nonsense makes speak.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next_at = -math.inf
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it; then it says how many others were not."""
        if record.levelno != logging.WARNING:
            return True
        if self._clock() < self._next_at:
            self._left_out += 1
            return False
        record.others = self._left_out
        self._left_out, self._next_at = 0, self._clock() + 1
        return True


def configure_logging(level: str, *, fd: int = 2) -> None:
    """Send every logger of the process to `fd` as JSON, from `level` (debug, info, warning, error) upwards.

    Call it before the SDK's server is created: its own set-up then leaves the root logger alone.
    """
    handler = BackgroundHandler(fd)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":  # they log every request at "info", and so do we
        for framework in _FRAMEWORKS:
            logging.getLogger(framework).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.captureWarnings(capture=True)
    # None of these is in a line; not looking them up is the documented way to make logging cheaper.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def flush_logs() -> None:
    """Wait for queued lines to be written, for half a second at most."""
    for handler in logging.getLogger().handlers:
        handler.flush()
