"""What a client may use, and has used."""

from fastapi import APIRouter

from api import examples, openapi
from api.dependencies import CallerDep
from api.quotas import AllowanceDep
from api.schemas import QuotaUses
from jobs import problems

router = APIRouter(tags=["service"])


@router.get(
    "/v1/quota",
    operation_id="get_quota",
    summary="Look at your limits",
    response_model=QuotaUses,
    responses={
        200: openapi.json_answer(
            "Every limit that you have.", {"limits": {"summary": "two limits", "value": examples.QUOTA}}
        ),
        **openapi.problem_answers(problems.BROKER_UNAVAILABLE),
    },
)
def get_quota(caller: CallerDep, allowance: AllowanceDep) -> QuotaUses:
    """What your tenant, and your key, may use and has used; none are listed where the operator has set none.

    Requests and bytes are counted in a window that begins with the first; what is stored is listed every few minutes.
    """
    return QuotaUses(tenant=caller.tenant, items=allowance.uses())
