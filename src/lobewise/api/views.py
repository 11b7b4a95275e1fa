"""Turns what the jobs say into what travels over HTTP: the same fields, with addresses."""

from lobewise.api.context import Addresses
from lobewise.api.schemas import Job, JobLinks
from lobewise.jobs.models import JobState, JobStatus, MaskName, Report


def job_view(state: JobState, addresses: Addresses) -> Job:
    fields = {name: getattr(state, name) for name in Job.model_fields if name != "links"}
    return Job(**fields, links=_links(state, addresses))


def report_view(report: Report, addresses: Addresses) -> Report:
    return report.model_copy(update={"masks": _masks(report.job_id, addresses)})


def _links(state: JobState, addresses: Addresses) -> JobLinks:
    succeeded = state.status is JobStatus.SUCCEEDED
    return JobLinks(
        self=addresses.job(state.id),
        cancel=None if state.status.is_final else addresses.job(state.id, "cancel"),
        report=addresses.job(state.id, "report") if succeeded else None,
        masks=_masks(state.id, addresses) if succeeded else None,
    )


def _masks(job_id: str, addresses: Addresses) -> dict[MaskName, str]:
    return {name: addresses.job(job_id, "masks", name) for name in MaskName}
