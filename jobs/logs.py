"""One shape of log for every process: a line of JSON, or a readable line on a terminal.

Each line has the time (UTC), level, logger and event, and what it belongs to: `request_id`, `tenant`, `job_id`,
`attempt` (`structlog.contextvars.bound_contextvars`), and where there are traces `trace_id` and `span_id`. No file
names, client references or anything else that a client sent: they may be a patient's.
"""

import logging
import sys
from typing import Final, Literal

import structlog
from structlog.typing import EventDict, Processor

from jobs.tracing import with_ids

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

#: They log addresses, which may be signed, or every step that they take.
_QUIET: Final = ("httpx", "botocore", "urllib3", "asyncio", "multiprocessing")
#: They bring handlers of their own, in another shape.
_RELAYED: Final = ("uvicorn", "uvicorn.error", "celery", "kombu")


def configure_logging(wanted: LogFormat = "auto", level: LogLevel = "INFO") -> None:
    """Send all that this process logs to its error stream, in one shape: `auto` is text on a terminal, else JSON."""
    is_text = wanted == "text" or (wanted == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        with_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if is_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _RELAYED:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _without_colours(_logger: object, _method: str, event: EventDict) -> EventDict:
    """uvicorn says some things a second time, in colour."""
    event.pop("color_message", None)
    return event
