"""What `submit` and `demo` do with a job: follow it and bring everything home."""

from pathlib import Path

from cli.client import JobView, ServiceClient, ServiceError
from cli.exits import Exit, fail
from cli.progress import bar
from jobs.models import MaskName, Report


def score_remotely(client: ServiceClient, scan: Path, priority: str = "routine") -> tuple[str, Report]:
    """Upload, wait, and fetch the report; progress is shown meanwhile.

    Raises:
        ServiceError: the service refuses or does not answer.
        typer.Exit: the scan was refused.
    """
    with bar("uploading") as shown:
        job = client.submit(scan, priority, lambda sent, size: shown.show("uploading", sent / size if size else 1.0))
        shown.show("uploaded", 1.0)
    with bar("waiting for a worker") as shown:
        for view in client.follow(job.id):
            waiting = "waiting for a worker" + (f", number {view.queue_position}" if view.queue_position else "")
            shown.show(view.stage or (waiting if view.status == "queued" else view.status), view.progress)
    if view.status == "failed":
        raise refused(view)
    if view.status != "succeeded":
        raise ServiceError(f"Job {view.id} was {view.status}.")
    return view.id, client.report(view.id)


def bring_home(client: ServiceClient, job_id: str, report: Report, folder: Path) -> list[Path]:
    """Masks and report, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name.value}.nii.gz" for name in MaskName]
    for name, path in zip(MaskName, paths, strict=True):
        client.save_mask(job_id, name, path)
    return [*paths, write_report(report, folder)]


def write_report(report: Report, folder: Path) -> Path:
    path = folder / "report.json"
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def refused(view: JobView) -> Exception:
    """The job failed: say why, in the words of its problem."""
    error = view.error or {}
    seen = ", ".join(f"{name} {value}" for name, value in (error.get("evidence") or {}).items())
    hints = (f"What was seen: {seen}",) if seen else ()
    return fail(Exit.SCAN_REFUSED, f"{error.get('title', 'The job failed')}: {error.get('detail', '')}", *hints)
