"""What the service is made of and how it does."""

from typing import Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from api import examples, metrics, openapi
from api.dependencies import JobsDep, MetricsDep
from api.docs_page import digest_of
from api.errors import ApiError
from api.problem_docs import PAGE_STYLE, html_page
from api.schemas import Health, ModelList, Ready
from jobs import problems
from jobs.audit.trail import AuditTrail
from jobs.problems import BY_SLUG

router = APIRouter(tags=["service"])


def _example(value: Any) -> dict[str, Any]:
    return {"answer": {"value": value}}


@router.get(
    "/v1/models",
    operation_id="list_models",
    summary="List the networks",
    response_model=ModelList,
    responses={
        200: openapi.json_answer(
            "The networks that scores come from.",
            _example({"items": [model.model_dump(mode="json") for model in examples.MODELS]}),
        ),
        **openapi.problem_answers(problems.BROKER_UNAVAILABLE),
    },
)
def list_models(jobs: JobsDep) -> ModelList:
    """Name, version and weights' sha256 of every network that a ready worker has loaded; empty while none is ready."""
    return ModelList(items=list(jobs.workers.models()))


@router.get(
    "/healthz",
    operation_id="get_health",
    summary="Is the process alive",
    response_model=Health,
    responses={
        200: openapi.json_answer("It answers.", _example({"status": "ok"})),
        **openapi.problem_answers(),
    },
)
async def get_health() -> Health:
    """Asks nothing but this process; restart it when it does not answer."""
    return Health()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Can scans be scored now",
    response_model=Ready,
    responses={
        200: openapi.json_answer(
            "Broker, storage and at least one worker are there.",
            _example({"broker": True, "blobs": True, "workers": 1}),
        ),
        **openapi.problem_answers(problems.NOT_READY),
    },
)
def get_readiness(request: Request, jobs: JobsDep) -> Response:
    """200 once broker and storage answer and a worker has its models loaded; until then 503, saying what is missing."""
    state = jobs.readiness()
    parts = {"broker": state.broker, "blobs": state.blobs, "workers": state.workers}
    trail: AuditTrail | None = request.app.state.audit
    # Then nothing that would have to be recorded is answered.
    if trail is not None and trail.is_full:
        parts["audit"] = False
    missing = ", ".join(name for name, there in parts.items() if not there)
    if missing:
        raise ApiError(problems.NOT_READY, f"missing: {missing}", evidence=parts)
    return JSONResponse(parts)


@router.get(
    "/metrics",
    operation_id="get_metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus text.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "lobewise_workers_ready 1.0\n"}},
        },
        **openapi.problem_answers(),
    },
)
def get_metrics(gateway_metrics: MetricsDep) -> Response:
    """Requests by route and status, their seconds, jobs and bytes accepted, and which parts are up."""
    return Response(gateway_metrics.text(), media_type=metrics.MEDIA_TYPE)


@router.get(
    "/problems/{slug}",
    operation_id="get_problem_type",
    summary="What a problem type means",
    response_class=HTMLResponse,
    responses={
        200: {
            "description": "A page for people.",
            "content": {"text/html": {"schema": {"type": "string"}, "example": "<h1>No lungs were found</h1>"}},
        },
        **openapi.problem_answers(problems.NOT_FOUND),
    },
)
async def get_problem_type(
    slug: str = Path(description="the last part of the `type`", examples=["damaged-file"]),
) -> Response:
    """The page that the `type` of a problem leads to."""
    if slug not in BY_SLUG:
        raise ApiError(problems.NOT_FOUND, problems.NOT_FOUND.meaning)
    policy = f"default-src 'none'; style-src '{digest_of(PAGE_STYLE.encode())}'; frame-ancestors 'none'"
    headers = {"Cache-Control": "public, max-age=3600", "Content-Security-Policy": policy}
    return HTMLResponse(html_page(BY_SLUG[slug]), headers=headers)
