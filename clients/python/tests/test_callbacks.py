"""Callbacks as the service signs them, and as others would like to."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lobewise_client import CallbackNotVerifiedError, verify_callback
from standardwebhooks import Webhook

from api import examples
from api.callback_message import Message, compose
from jobs.callbacks import Delivery
from jobs.models import InputInfo, JobRecord, Manifest

SECRET, OTHER = "whsec_" + "QUJD" * 10, "whsec_" + "REVG" * 10
NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
SECONDS = NOW.timestamp()


def message(*secrets: str) -> Message:
    """Of the service's own making."""
    record = JobRecord(
        id=examples.JOB_ID,
        created_at=NOW,
        input=InputInfo(),
        client_reference="worklist-1",
        address=f"https://lobewise.example/v1/jobs/{examples.JOB_ID}",
    )
    manifest = Manifest(
        job_id=record.id, outcome="succeeded", attempt=1, finished_at=NOW, severity=examples.SEVERITY, report_key="x"
    )
    delivery = Delivery(record.id, record, manifest, "https://pacs.example/ended", 1, 1)
    return compose(delivery, [Webhook(secret) for secret in secrets], NOW)


def test_what_the_service_signs_is_believed() -> None:
    sent = message(SECRET)
    told = verify_callback(sent.body, sent.headers, SECRET, now=SECONDS)
    assert (told.data.id, told.data.status, told.data.client_reference) == (
        examples.JOB_ID,
        "succeeded",
        "worklist-1",
    )
    assert told.data.severity is not None
    assert told.data.severity.percent_opacity == examples.SEVERITY.percent_opacity
    assert told.id == sent.headers["webhook-id"]
    capitals = {name.title(): value for name, value in sent.headers.items()}
    assert verify_callback(sent.body.encode(), capitals, [OTHER, SECRET], now=SECONDS) == told


def test_old_and_new_secrets_do_while_they_are_changed() -> None:
    sent = message(OTHER, SECRET)
    for secret in (SECRET, OTHER, [SECRET], [OTHER, SECRET]):
        verify_callback(sent.body, sent.headers, secret, now=SECONDS)


@pytest.mark.parametrize("late", [-301, 301])
def test_an_old_one_is_not(late: int) -> None:
    sent = message(SECRET)
    with pytest.raises(CallbackNotVerifiedError, match="300 s"):
        verify_callback(sent.body, sent.headers, SECRET, now=SECONDS + late)
    verify_callback(sent.body, sent.headers, SECRET, 302, now=SECONDS + late)
    with pytest.raises(CallbackNotVerifiedError):  # by the clock it is years old, or yet to come
        verify_callback(sent.body, sent.headers, SECRET)


@given(st.data())
def test_nothing_of_it_may_be_changed(data: st.DataObject) -> None:
    sent = message(SECRET)
    name = data.draw(st.sampled_from(["body", "webhook-id", "webhook-timestamp", "webhook-signature"]))
    parts = {"body": sent.body, **sent.headers}
    text = parts[name]
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii", exclude_characters=text[place]))
    parts[name] = text[:place] + other + text[place + 1 :]
    with pytest.raises(CallbackNotVerifiedError):
        verify_callback(parts.pop("body"), parts, SECRET, 10**12, now=SECONDS)


def test_what_is_missing_or_of_another_kind_is_not_believed() -> None:
    sent = message(SECRET)
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        others = {key: value for key, value in sent.headers.items() if key != name}
        with pytest.raises(CallbackNotVerifiedError, match="headers"):
            verify_callback(sent.body, others, SECRET, now=SECONDS)
    with pytest.raises(CallbackNotVerifiedError, match="No signature"):
        verify_callback(sent.body, sent.headers, OTHER, now=SECONDS)
    unknown = sent.headers["webhook-signature"].replace("v1,", "v1a,")
    with pytest.raises(CallbackNotVerifiedError, match="No signature"):
        verify_callback(sent.body, {**sent.headers, "webhook-signature": unknown}, SECRET, now=SECONDS)
    body = json.dumps({"hello": 1})
    signature = Webhook(SECRET).sign("m", NOW, body)
    headers = {"webhook-id": "m", "webhook-timestamp": str(int(SECONDS)), "webhook-signature": signature}
    with pytest.raises(CallbackNotVerifiedError, match="is no JobEnded"):
        verify_callback(body, headers, SECRET, now=SECONDS)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_not base64", []])
def test_a_secret_that_is_none_lets_nothing_through(secret: str | list[str]) -> None:
    sent = message(SECRET)
    with pytest.raises((ValueError, CallbackNotVerifiedError)):
        verify_callback(sent.body, sent.headers, secret, now=SECONDS)
