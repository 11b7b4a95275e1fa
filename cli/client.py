"""A scan sent to a running service by the client library, with a bar for people."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lobewise_client import (
    Client,
    ConnectionFailedError,
    InvalidAddressError,
    JobFailedError,
    LobewiseError,
    ProblemError,
    Progress,
    Result,
)

from cli.output import ServiceError, bar, fail_refused
from jobs.errors import SettingsError
from jobs.models import Report
from jobs.proxies import RoutedTransport, proxy_of


@contextmanager
def connected(address: str, key_file: Path | None = None) -> Iterator[Client]:
    """A client of the service, which must answer. The key lies in the file or, without one, in `LOBEWISE_API_KEY`.

    Raises:
        SettingsError: the address is none, or the environment's proxy for it cannot be used.
        ServiceError: whatever goes wrong on the way, in words for people.
    """
    proxy = proxy_of(address)
    try:
        key = key_file.read_text(encoding="utf-8").strip() if key_file else None
        with Client(address, api_key=key, transport=RoutedTransport()) as client:
            # Once, before a call is tried again and again: a wrong address is to be told at once.
            with suppress(ProblemError):
                client.health()
            yield client
    except InvalidAddressError as error:
        raise SettingsError(str(error)) from error
    except ConnectionFailedError as error:
        by = f" It was asked by the proxy that {proxy.variable} names." if proxy else ""
        raise ServiceError(f"{error}{by}") from error
    except LobewiseError as error:
        raise ServiceError(str(error)) from error


def score_remotely(client: Client, scan: Path, priority: str = "routine") -> tuple[Result, Report]:
    """Upload, wait, and fetch the report; progress is shown meanwhile.

    Raises:
        LobewiseError: the service refuses or does not answer.
        typer.Exit: the scan was refused.
    """
    with bar("uploading") as shown:

        def show(progress: Progress) -> None:
            position = "" if progress.queue_position is None else f", number {progress.queue_position}"
            texts = {"upload": "uploading", "queued": f"waiting for a worker{position}"}
            shown.show(texts.get(progress.stage, progress.stage), progress.fraction)

        try:
            result = client.score(scan, priority=priority, on_progress=show)
        except JobFailedError as error:
            problem = error.problem
            raise fail_refused(problem.title, problem.detail, problem.evidence) from error
    return result, Report.read(result.report.model_dump_json())
