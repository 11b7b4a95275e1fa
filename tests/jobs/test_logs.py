"""What a process logs: one shape, with what each line belongs to."""

import json
import logging
from collections.abc import Iterator

import pytest
from structlog.contextvars import bound_contextvars

from jobs.logs import configure_logging


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_its_context_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    with bound_contextvars(job_id="01"), bound_contextvars(attempt=2):
        logging.getLogger("lobewise.worker").info("stage %s", "lungs", extra={"seconds": 1.5})
    logging.getLogger("celery").warning("outside")
    inside, outside = lines(capsys)
    assert inside.pop("timestamp")
    assert inside == {
        "event": "stage lungs",
        "level": "info",
        "logger": "lobewise.worker",
        "job_id": "01",
        "attempt": 2,
        "seconds": 1.5,
    }
    assert "job_id" not in outside


def test_a_fault_is_one_line_with_its_traceback_and_no_locals(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    patient = "Doe^Jane"
    try:
        raise ValueError("a fault")
    except ValueError:
        logging.getLogger("lobewise").exception("it failed")
    (line,) = lines(capsys)
    assert "ValueError: a fault" in str(line["exception"])
    assert patient not in json.dumps(line).replace('patient = "Doe^Jane"', "")


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    logging.getLogger("lobewise").warning("the disk is full", extra={"free_bytes": 0})
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "free_bytes=0" in said
    assert not said.startswith("{")


def test_what_is_not_a_terminal_gets_json_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    logging.getLogger("lobewise").warning("piped")
    assert lines(capsys)[0]["event"] == "piped"


def test_the_level_is_kept_and_chatter_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "WARNING")
    logging.getLogger("lobewise").info("too much")
    configure_logging("json", "INFO")
    logging.getLogger("httpx").info("GET https://bucket/?X-Amz-Signature=secret")
    assert lines(capsys) == []


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    configure_logging("json")
    logging.getLogger("uvicorn.error").warning("once")
    assert len(lines(capsys)) == 1
