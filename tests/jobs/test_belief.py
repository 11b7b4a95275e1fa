"""When the live view may be believed: not while it may be behind the blobs."""

from collections.abc import Callable

import pytest
import redis

from lobewise.jobs import states
from lobewise.jobs.belief import Belief
from lobewise.jobs.errors import BrokerUnavailableError
from lobewise.jobs.models import InputInfo, JobError, JobRecord, JobState, JobStatus
from lobewise.jobs.service import Jobs


def shown(status: JobStatus) -> JobState:
    record = JobRecord(id="x", created_at=states.now(), input=InputInfo())
    return states.changed(states.queued(record), status=status)


class Connection:
    pass


def test_an_end_is_always_believed() -> None:
    belief = Belief(60.0)
    belief.lose()
    assert belief.holds(shown(JobStatus.SUCCEEDED), is_whole=False)


def test_what_is_open_is_not_believed_after_an_answer_that_did_not_come() -> None:
    belief = Belief(60.0)
    assert belief.holds(shown(JobStatus.RUNNING), is_whole=True)
    belief.lose()
    assert not belief.holds(shown(JobStatus.RUNNING), is_whole=True)


def test_what_is_open_is_not_believed_in_a_view_that_was_wiped() -> None:
    assert not Belief(60.0).holds(shown(JobStatus.QUEUED), is_whole=False)


def test_a_new_connection_is_no_reason_to_doubt_but_one_that_was_lost_is() -> None:
    belief, connections = Belief(60.0), [Connection(), Connection()]
    for connection in connections:
        belief.connected(connection)
    assert belief.holds(shown(JobStatus.RUNNING), is_whole=True)
    belief.connected(connections[0])
    assert not belief.holds(shown(JobStatus.RUNNING), is_whole=True)


def test_a_gateway_that_asked_nothing_while_the_broker_was_away_shows_no_step_back(
    jobs: Jobs, post: Callable[..., str], server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the campaign (seed 5): one gateway read the end from the blobs, the other showed the job as running."""
    job_id = post(jobs)
    jobs.rebuild()
    lease = jobs.claim(job_id, "worker")
    assert jobs.get(job_id).status == JobStatus.RUNNING

    def away(*_: object, **__: object) -> None:
        raise BrokerUnavailableError("away")

    with monkeypatch.context() as outage:
        outage.setattr(jobs._live, "put", away)
        jobs.fail(lease, JobError(type="/problems/x", title=".", detail=".", retryable=False))
    server.execute_command("CLIENT KILL TYPE normal SKIPME yes")  # what a restart does to every connection
    assert jobs.get(job_id).status == JobStatus.FAILED
