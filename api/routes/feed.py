"""Following all jobs at once."""

from typing import Annotated, Any, Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api import examples, openapi
from api.conditional import wait_seconds
from api.dependencies import ClientDep, JobsDep, SettingsDep, one_of_each
from api.schemas import FeedPage, Schema
from api.sse import Streams
from api.views import feed_view, json_response
from jobs import problems

router = APIRouter(tags=["jobs"])


class FeedQuery(Schema):
    cursor: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="`next_cursor` of the page before: only what came after it",
        examples=[examples.FEED_CURSOR],
    )
    start: Literal["oldest", "newest"] = Field(
        default="oldest",
        description="without a cursor: with the oldest change that is kept, or with those to come",
    )
    limit: int = Field(default=100, ge=1, le=200, description="how many changes a page has at most")


@router.get(
    "/v1/events",
    operation_id="list_events",
    dependencies=[Depends(one_of_each)],
    summary="Follow all jobs",
    response_model=FeedPage,
    responses={
        200: openapi.json_answer(
            "What happened after the cursor; empty if nothing has.", examples.feed_examples(), "Preference-Applied"
        ),
        **openapi.problem_answers(problems.INVALID_PARAMETERS, problems.CURSOR_EXPIRED, problems.BROKER_UNAVAILABLE),
    },
)
async def list_events(
    request: Request,
    query: Annotated[FeedQuery, Query()],
    jobs: JobsDep,
    settings: SettingsDep,
    client: ClientDep,
    prefer: Annotated[
        str | None,
        Header(
            alias="Prefer",
            description="`wait=N` (RFC 7240) holds an answer without changes back for up to N seconds",
            examples=["wait=20"],
        ),
    ] = None,
) -> JSONResponse:
    """Each change of each job: accepted, come to a status, deleted. A job's changes come in their order.

    Keep `next_cursor` once you are done with a page, and ask again with it: nothing is missed, and what you had not
    finished comes again. To begin, get a cursor with `start=newest`, then list the jobs that there are, then follow it.
    410 says that some changes are gone: begin again in the same way.
    """
    streams: Streams = request.app.state.streams
    wanted_seconds = wait_seconds(prefer, settings.max_wait_seconds)
    # A wait is a stream that ends with its first event. Too many: this one is answered at once.
    waits = wanted_seconds > 0 and streams.has_room(client)
    deadline = anyio.current_time() + wanted_seconds

    def read(cursor: str | None) -> Any:
        return jobs.changes(cursor, limit=query.limit, from_oldest=query.start == "oldest")

    changes, states = await run_sync(read, query.cursor)
    if waits and not changes.items:
        with streams.slot(client), streams.watching(jobs.feed_name) as waker:
            while not changes.items and not streams.is_closing:
                # Read after the watch has begun: a change in between would wake nobody.
                changes, states = await run_sync(read, changes.next_cursor)
                if changes.items or (left_seconds := deadline - anyio.current_time()) <= 0:
                    break
                with anyio.move_on_after(left_seconds):
                    await waker.wait()
                waker.clear()
    headers = {"Preference-Applied": f"wait={wanted_seconds}"} if waits else {}
    return json_response(feed_view(changes, states), headers=headers)
