"""Random calls, right and wrong, to every operation: no fault, and no answer that the document does not name."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig

from jobs.settings import ApiSettings
from jobs.states import MultipartUploadState, UrlSignature

from .conftest import DOCUMENT, Service, nifti, running_service

SETTINGS = ApiSettings(max_wait_seconds=0, stream_seconds=0.2)
KEY = "f1f2" * 16
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a job in every state; calls find them by `job_ids`. It wants a key, as its document says."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOBEWISE_FIRST_KEY", KEY)
            folder = tmp_path_factory.mktemp("fuzzed")
            service = stack.enter_context(running_service(folder / "service", SETTINGS))
        service.client.headers.update(WITH_KEY)
        service.jobs.worker.workers.announce("fuzzed", 600)
        yield service


@pytest.fixture
def job_ids(service: Service) -> "itertools.cycle[str]":
    queued, failed, purged, cancelled = (service.submit() for _ in range(4))
    service.worker.fail(failed)
    service.jobs.service.cancel(cancelled)
    service.jobs.service.purge(purged)
    kept = [service.succeeded() for _ in range(3)]
    return itertools.cycle([*kept, queued, failed, purged, cancelled])


@pytest.fixture
def uploads(service: Service) -> "itertools.cycle[MultipartUploadState]":
    """One that waits for its part, one that was aborted."""
    states = [service.jobs.service.uploads.create(1000) for _ in range(2)]
    service.jobs.service.uploads.abort(states[1].record.id)
    return itertools.cycle(states)


# A copy, for it is changed in reading.
_document = copy.deepcopy(DOCUMENT)
# A stream of events is a text to clients; schemathesis takes the schema beside it for that of one event.
_stream = _document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
_stream["schema"] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"const": "job"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "retry": {"type": "integer"},
    },
}

document = schemathesis.openapi.from_dict(
    _document,
    config=SchemathesisConfig.from_dict(
        {
            # Calls bring the key; that others are refused, the check `ignored_auth` asks for itself.
            "generation": {"with-security-parameters": False},
            "checks": {
                # Right by the schema, and yet: a file of no known format, a job in the wrong state, an address that
                # was not signed, a scan beyond the limit.
                "positive_data_acceptance": {
                    "expected-statuses": ["2xx", "304", "403", "404", "409", "410", "413", "415", "422"]
                },
                # A size beyond the largest number is beyond the limit, too, and refused as that.
                "negative_data_rejection": {
                    "expected-statuses": ["400", "403", "404", "405", "409", "413", "415", "422"]
                },
            },
        }
    ),
)


@document.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_gateway_keeps_to_its_document(
    case: schemathesis.Case,
    service: Service,
    job_ids: "itertools.cycle[str]",
    uploads: "itertools.cycle[MultipartUploadState]",
) -> None:
    if "job_id" in case.path_parameters and next(_turns):
        case.path_parameters["job_id"] = next(job_ids)
    if "upload_id" in case.path_parameters and next(_turns):
        _aim(case, next(uploads))
    if isinstance(case.body, dict) and isinstance(case.body.get("file"), bytes) and next(_turns):
        case.body["file"] = nifti() + case.body["file"]
    case.call_and_validate(base_url=service.address, headers=WITH_KEY)


def _aim(case: schemathesis.Case, upload: MultipartUploadState) -> None:
    case.path_parameters["upload_id"] = upload.record.id
    signed = upload.parts[0].url
    if case.path_parameters.get("number") == 1 and isinstance(signed, UrlSignature):
        case.query.update(expires=signed.expires, signature=signed.signature)


_turns = itertools.cycle([True, True, False])


def test_calls_that_follow_each_other_keep_to_the_document(service: Service) -> None:
    """A job is submitted, then read, stopped and deleted in any order, as the document's links lead."""

    class Workflow(document.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, object]:  # noqa: ARG002
            return {"base_url": service.address, "headers": WITH_KEY}

        def before_call(self, case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("file"), bytes):
                case.body["file"] = nifti() + case.body["file"]

    bounds = settings(max_examples=10, stateful_step_count=6, deadline=None, derandomize=True)
    Workflow.run(settings=settings(bounds, suppress_health_check=list(HealthCheck)))
