"""One made-up scan, told through every example of the OpenAPI document."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from api.dependencies import Addresses
from api.schemas import BatchList, MaskAddress
from api.sse import RETRY, written
from api.views import as_json, batch_summary, batch_view, feed_view, job_view, report_view, upload_view
from jobs import problems
from jobs.batches import BatchCounts, BatchItem, BatchRecord
from jobs.live.events import JobEvent
from jobs.live.feed import Change, Changes, ChangeType
from jobs.models import (
    BatchCallback,
    Callback,
    CallbackAttempt,
    CallbackFault,
    CallbackOutcome,
    CallbackStatus,
    InputInfo,
    Inspection,
    JobError,
    JobState,
    JobStatus,
    LandmarkPoint,
    LobeName,
    LobeScores,
    LungVolumes,
    MaskLabel,
    MaskLabels,
    MaskName,
    ModelProvenance,
    PercentRange,
    Provenance,
    QualityFinding,
    Report,
    ScanGeometry,
    SeverityScores,
    Stage,
    UploadCompletion,
    UploadRecord,
    ValueHistogram,
)
from jobs.states import MultipartUploadState, PartState, UrlSignature

ADDRESSES: Final = Addresses("https://lobewise.example")
JOB_ID: Final = "01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b11"
UPLOAD_ID: Final = "01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b99"
PICTURE: Final = "coronal"
BATCH_ID: Final = "01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b77"
SHA256: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
REVISION: Final = "5d41402abc4b2a76"
CURSOR: Final = "MDE5MzVmM2E"
_WEIGHTS: Final = {
    "landmarks": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "lungs": "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9",
    "lesions": "baa5a0964d3320fbc0c6a922140453c8513ea24ab8fd0577034804a967248096",
}
MODELS: Final = [ModelProvenance(name=name, version="1", sha256=sha256) for name, sha256 in _WEIGHTS.items()]
QUOTA: Final = {
    "tenant": "clinic-a",
    "items": [
        {
            "quota": "requests_per_minute",
            "of": "tenant",
            "limit": 600,
            "used": 12,
            "remaining": 588,
            "window_seconds": 60,
            "resets_in_seconds": 23,
        },
        {
            "quota": "waiting_jobs",
            "of": "tenant",
            "limit": 500,
            "used": 40,
            "remaining": 460,
            "window_seconds": None,
            "resets_in_seconds": None,
        },
    ],
}
SEVERITY: Final = SeverityScores(
    percent_opacity=12.3,
    percent_opacity_range=PercentRange(low=10.8, high=14.1),
    percent_high_opacity=2.1,
    lung_severity_score=5,
    lung_high_opacity_score=2,
)
FAILURE: Final = JobError.of(
    problems.BY_SLUG["lungs-not-found"], "The segmentation found 0.1 ml of lung.", {"lung_volume_ml": 0.1}
)


def _moment(second: int) -> datetime:
    return datetime(2026, 3, 2, 9, 30, second, tzinfo=UTC)


def _state(status: JobStatus, **live: Any) -> JobState:
    return JobState(
        id=JOB_ID,
        status=status,
        created_at=_moment(0),
        input=InputInfo(size_bytes=68_157_440, sha256=SHA256),
        client_reference="worklist-4711",
        revision=REVISION,
        **{"updated_at": _moment(0), **live},
    )


def _lobe(
    lobe: LobeName, label: int, volume_ml: float, percent: tuple[float, float], score: tuple[int, int]
) -> LobeScores:
    return LobeScores(
        lobe=lobe,
        label=label,
        volume_ml=volume_ml,
        percent_opacity=percent[0],
        percent_opacity_range=PercentRange(low=round(0.91 * percent[0], 1), high=round(1.066 * percent[0], 1)),
        percent_high_opacity=percent[1],
        severity_score=score[0],
        high_opacity_score=score[1],
    )


QUEUED: Final = _state(JobStatus.QUEUED, queue_position=1, estimated_start_at=_moment(20))
RUNNING: Final = _state(
    JobStatus.RUNNING, updated_at=_moment(9), started_at=_moment(2), stage=Stage.LUNGS, progress=0.4, attempt=1
)
CANCELLING: Final = RUNNING.model_copy(update={"cancel_requested": True})
SUCCEEDED: Final = _state(
    JobStatus.SUCCEEDED,
    updated_at=_moment(41),
    started_at=_moment(2),
    finished_at=_moment(41),
    progress=1.0,
    attempt=1,
    severity=SEVERITY,
)
FAILED: Final = _state(
    JobStatus.FAILED, updated_at=_moment(12), started_at=_moment(2), finished_at=_moment(12), attempt=1, error=FAILURE
)

REUSED: Final = SUCCEEDED.model_copy(
    update={
        "id": "01935f3a-9d20-7c4e-8a11-6b0f5c2d9e33",
        "created_at": _moment(55),
        "updated_at": _moment(55),
        "started_at": None,
        "finished_at": _moment(55),
        "attempt": 0,
        "reused_from": JOB_ID,
    }
)

_LOBES: Final = [
    _lobe("left_upper", 1, 1101.0, (3.0, 0.2), (1, 0)),
    _lobe("left_lower", 2, 1090.5, (21.4, 4.3), (1, 1)),
    _lobe("right_upper", 3, 1004.1, (2.6, 0.1), (1, 0)),
    _lobe("right_middle", 4, 412.3, (1.4, 0.0), (1, 0)),
    _lobe("right_lower", 5, 1202.3, (24.3, 4.3), (1, 1)),
]
REPORT: Final = Report(
    job_id=JOB_ID,
    severity=SEVERITY,
    lungs=LungVolumes(volume_ml=4810.2, opacity_ml=590.4, high_opacity_ml=101.8),
    lobes=_LOBES,
    landmarks=[
        LandmarkPoint(name="carina", found=True, position_mm=(1.2, -30.5, -210.0)),
        LandmarkPoint(name="sternum_tip", found=False, position_mm=None),
    ],
    quality=[
        QualityFinding(
            code="thick-slices",
            severity="warning",
            message="Slices are 5 mm apart; small lesions may be missed.",
            evidence={"spacing_mm": 5.0},
        ),
        QualityFinding(
            code="lobe-score-unsure",
            severity="info",
            message="22.1 to 25.9 % of the right lower lobe may be affected, so that its score may be 1 to 2.",
            evidence={"percent_opacity_low": 22.1, "percent_opacity_high": 25.9, "score_low": 1, "score_high": 2},
            lobe="right_lower",
        ),
    ],
    provenance=Provenance(
        input_sha256=SHA256,
        software="0.1.0",
        models=MODELS,
        device="cpu",
        geometry=ScanGeometry(file_format="DICOM", used=["ImagePositionPatient", "ImageOrientationPatient"]),
        seconds={"read": 0.7, "landmarks": 2.4, "lungs": 9.8, "lesions": 21.0, "severity": 0.6, "store": 1.9},
    ),
)

LABELS: Final = MaskLabels(
    masks={
        MaskName.LUNGS: [
            MaskLabel(number=1, name="lungs", display_name="Lungs", colour="#0072b2", snomed_ct="39607008")
        ],
        MaskName.LOBES: [
            MaskLabel(number=number, name=name, display_name=shown, colour=colour, snomed_ct=code)
            for number, name, shown, colour, code in (
                (1, "left_upper", "Left upper lobe", "#56b4e9", "44714003"),
                (2, "left_lower", "Left lower lobe", "#009e73", "41224006"),
                (3, "right_upper", "Right upper lobe", "#e69f00", "42400003"),
                (4, "right_middle", "Right middle lobe", "#f0e442", "72481006"),
                (5, "right_lower", "Right lower lobe", "#cc79a7", "266005"),
            )
        ],
        MaskName.LESIONS: [MaskLabel(number=1, name="lesions", display_name="Opacities", colour="#ff3c28")],
        MaskName.HIGH_OPACITY: [
            MaskLabel(number=1, name="high_opacity", display_name="High opacities", colour="#a0143c")
        ],
    }
)

INSPECTION: Final = Inspection(
    software="0.1.0",
    input_size_bytes=34_119_207,
    geometry=ScanGeometry(
        file_format="NIfTI-1",
        used=["sform"],
        ignored={"qform": "the qform contradicts the sform by 37.4 mm: the sform was used."},
    ),
    shape=(133, 512, 512),
    spacing_mm=(2.5, 0.859, 0.859),
    origin_mm=(-220.0, -211.4, -331.5),
    direction=[(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)],
    axes="LPS",
    histogram=ValueHistogram(
        lowest_hu=-1024, highest_hu=1871, bin_hu=1024, first_hu=-1024, voxels=[20_411_873, 14_404_371, 48_508]
    ),
    quality=[
        QualityFinding(
            code="geometry-fields-differ",
            severity="warning",
            message="the qform contradicts the sform by 37.4 mm: the sform was used.",
            evidence={"used": "the sform", "ignored": "the qform", "apart_mm": 37.4},
        )
    ],
)


_UPLOAD: Final = UploadRecord(
    id=UPLOAD_ID,
    created_at=_moment(0),
    expires_at=_moment(0) + timedelta(days=1),
    size_bytes=20_000_000,
    sha256=SHA256,
    part_bytes=16_777_216,
)
_UPLOADS: Final = {
    "open": MultipartUploadState(
        _UPLOAD,
        None,
        (
            PartState(1, 16_777_216, url=None),
            PartState(2, 3_222_784, url=UrlSignature(expires=1_772_444_700, signature=SHA256)),
        ),
        _moment(0) + timedelta(minutes=15),
    ),
    "complete": MultipartUploadState(
        _UPLOAD,
        UploadCompletion(key="scan", size_bytes=20_000_000, sha256=SHA256),
        (PartState(1, 16_777_216, url=None), PartState(2, 3_222_784, url=None)),
        None,
    ),
}


_ATTEMPTS: Final = [
    CallbackAttempt(
        round=1,
        number=1,
        started_at=_moment(42),
        seconds=15.0,
        outcome=CallbackOutcome.RETRY,
        fault=CallbackFault.TIMEOUT,
        next_attempt_at=_moment(52),
    ),
    CallbackAttempt(
        round=1, number=2, started_at=_moment(52), seconds=0.081, outcome=CallbackOutcome.DELIVERED, http_status=204
    ),
]
_RECEIVER: Final = "https://pacs.example/lobewise/finished"
_CALLBACKS: Final = {
    "pending": Callback(
        job_id=JOB_ID, url=_RECEIVER, status=CallbackStatus.PENDING, next_attempt_at=_moment(52), attempts=_ATTEMPTS[:1]
    ),
    "delivered": Callback(job_id=JOB_ID, url=_RECEIVER, status=CallbackStatus.DELIVERED, attempts=_ATTEMPTS),
}


def job_examples(*states: JobState) -> dict[str, Any]:
    return {
        state.status.value: {"summary": f"a {state.status.value} job", "value": as_json(job_view(state, ADDRESSES))}
        for state in states
    }


def reused_example() -> dict[str, Any]:
    summary = "one that was given the result of an earlier job at once"
    return {"reused": {"summary": summary, "value": as_json(job_view(REUSED, ADDRESSES))}}


def event_example() -> str:
    """Two events as they travel."""
    events = (JobEvent("1772444709000-0", RUNNING), JobEvent("1772444712000-0", SUCCEEDED))
    return RETRY + "".join(written(event, ADDRESSES) for event in events)


FEED_CURSOR: Final = "5f0c2a9d1b7e4c38.1772444712000-0"


def feed_examples() -> dict[str, Any]:
    moments = (("created", 0), ("running", 2), ("succeeded", 41))
    times = [(name, round(_moment(seconds).timestamp() * 1000)) for name, seconds in moments]
    changes = tuple(Change(f"{time}-0", JOB_ID, ChangeType(name)) for name, time in times)
    page = Changes(changes, f"{FEED_CURSOR.partition('.')[0]}.{changes[-1].id}", has_more=False)
    none = Changes((), FEED_CURSOR, has_more=False)
    return {
        "life": {"summary": "the life of a job", "value": as_json(feed_view(page, [SUCCEEDED] * len(changes)))},
        "nothing": {"summary": "nothing has happened", "value": as_json(feed_view(none, []))},
    }


def report_example() -> Any:
    return as_json(report_view(REPORT, ADDRESSES))


def upload_examples(*names: str) -> dict[str, Any]:
    views = {name: upload_view(_UPLOADS[name], ADDRESSES) for name in names}
    return {name: {"summary": f"an {name} upload", "value": as_json(view)} for name, view in views.items()}


BATCH_REQUEST: Final = {
    "items": [
        {"source": {"url": "https://pacs.example/ct/1.nii.gz"}, "client_reference": "worklist-4711"},
        {"source": {"upload_id": UPLOAD_ID}, "priority": "routine"},
    ]
}


def _batch() -> tuple[BatchRecord, BatchCounts]:
    refusal = JobError.of(problems.UPLOAD_NOT_FOUND, "there is no such upload, or no longer", {})
    items = [BatchItem(job_id=JOB_ID), BatchItem(error=refusal)]
    record = BatchRecord(id=BATCH_ID, created_at=_moment(0), items=items)
    counts = BatchCounts({status: int(status is JobStatus.SUCCEEDED) for status in JobStatus}, purged=0, refused=1)
    return record, counts


def batch_examples() -> dict[str, Any]:
    view = batch_view(*_batch(), [SUCCEEDED, None], 0, ADDRESSES)
    return {"batch": {"summary": "one has succeeded, one was refused", "value": as_json(view)}}


def batch_list_example() -> Any:
    return as_json(BatchList(items=[batch_summary(*_batch(), ADDRESSES)], next_cursor=CURSOR))


def callback_examples(*names: str) -> dict[str, Any]:
    return {name: {"summary": f"a {name} callback", "value": as_json(_CALLBACKS[name])} for name in names}


def batch_callback_examples(*names: str) -> dict[str, Any]:
    return {
        name: {
            "summary": f"a {name} callback",
            "value": as_json(BatchCallback(batch_id=BATCH_ID, **_CALLBACKS[name].model_dump(exclude={"job_id"}))),
        }
        for name in names
    }


def mask_address_example() -> Any:
    url = ADDRESSES.job(JOB_ID, "masks", "lungs")
    return as_json(MaskAddress(url=url, expires_at=None, size_bytes=52_113, sha256=SHA256))


def list_example() -> Any:
    return {"items": [as_json(job_view(SUCCEEDED, ADDRESSES))], "next_cursor": CURSOR}
