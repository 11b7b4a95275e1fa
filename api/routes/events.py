"""Watching a job without asking again and again."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Annotated, Final

import anyio
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from api import examples, openapi
from api.access import is_still_allowed
from api.dependencies import Addresses, AddressesDep, ClientDep, JobsDep, SettingsDep
from api.routes.jobs import READ_PROBLEMS, JobId
from api.sse import RETRY, Streams, follow, written
from jobs import problems
from jobs.live.events import JobEvent

router = APIRouter(tags=["jobs"])

MEDIA_TYPE: Final = "text/event-stream"
_EVENTS: Final = {
    "type": "string",
    "description": "Events with `id`, to send as `Last-Event-ID` (absent while the broker is down), `event: job`, "
    "`data`, the job as `get_job` has it, and `retry`, milliseconds after which to come back.",
}
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        description="id of the last event that you have: those after it are sent, and no other",
        examples=["1772444709000-0"],
    ),
]


@router.get(
    "/v1/jobs/{job_id}/events",
    operation_id="watch_job",
    summary="Watch a job",
    response_class=Response,
    responses={
        200: {
            "description": "A stream of server-sent events, each named `job` with the job as JSON.",
            "content": {MEDIA_TYPE: {"schema": _EVENTS, "example": examples.event_example()}},
        },
        204: {"description": "The job is final and you have its last event: do not come back."},
        **openapi.problem_answers(*READ_PROBLEMS, problems.TOO_MANY_STREAMS, problems.CLIENT_LIMIT),
    },
)
async def watch_job(
    request: Request,
    job_id: JobId,
    jobs: JobsDep,
    settings: SettingsDep,
    addresses: AddressesDep,
    client: ClientDep,
    last_event_id: LastEventId = None,
) -> Response:
    """The job as it stands, and again whenever it changes, until it is final; then the stream ends.

    A client that comes back with `Last-Event-ID`, as `EventSource` does by itself, misses nothing and gets nothing
    twice; where the events in between are no longer known, it gets the job as it stands. `queue_position` and
    `estimated_start_at` are null here.
    """
    streams: Streams = request.app.state.streams
    state = await anyio.to_thread.run_sync(jobs.get, job_id)
    if state.status.is_final and not await anyio.to_thread.run_sync(jobs.events, job_id, last_event_id):
        return Response(status_code=204)
    # Taken here and not in the generator, which starts after the status: the client must still be able to get a 503.
    with ExitStack() as opened:
        opened.enter_context(streams.slot(client))
        fetch, times = partial(jobs.events, job_id), (settings.keep_alive_seconds, settings.stream_seconds)
        events = follow(streams, job_id, last_event_id, fetch, *times)
        slot = opened.pop_all()
    # nginx would hold events back.
    headers = {"X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(request, events, addresses, slot), headers=headers, media_type=MEDIA_TYPE)


async def _lines(
    request: Request, events: AsyncGenerator[JobEvent | None], addresses: Addresses, slot: ExitStack
) -> AsyncIterator[str]:
    with slot:
        yield RETRY
        async with aclosing(events):
            async for event in events:
                # A key that was revoked meanwhile sees nothing more.
                if not await is_still_allowed(request):
                    return
                yield ": still there\n\n" if event is None else written(event, addresses)
