"""`lobewise demo`: one scan through the whole service, from nothing to scores, and everything stopped again."""

import tempfile
from pathlib import Path

from cli.client import ServiceClient, ServiceError, bring_home, score_remotely
from cli.local import ServiceFailedError, free_port, local_service, terminated_like_interrupted
from cli.output import Exit, err, fail, out, print_report
from jobs.models import Report

DEMO_SEED = 2020
DEMO_PERCENT_OPACITY = 14.0
DEMO_SPACING_MM = (3.0, 1.5, 1.5)


def run(scan: Path | None, folder: Path, device: str) -> None:
    """Raises: typer.Exit: with the code that says what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with terminated_like_interrupted(), tempfile.TemporaryDirectory(prefix="lobewise-demo-") as data_dir:
            _run(scan, folder, device, Path(data_dir))
    except (ServiceError, ServiceFailedError) as error:
        raise fail(Exit.SERVICE_PROBLEM, str(error), f"The logs are in {folder}.") from error
    except KeyboardInterrupt as error:
        raise fail(Exit.SERVICE_PROBLEM, "Stopped before the scan was scored.") from error


def _run(scan: Path | None, folder: Path, device: str, data_dir: Path) -> None:
    truth: Report | None = None
    if scan is None:
        scan, truth = _phantom(folder)
    err.print("Starting gateway and worker on this machine ...")
    with local_service("127.0.0.1", free_port(), data_dir, device, logs=folder) as service:
        err.print(f"Both are ready at {service.address}. Posting {scan} ...", highlight=False)
        with ServiceClient(service.address) as client:
            job_id, report = score_remotely(client, scan)
            paths = bring_home(client, job_id, report, folder)
    paths.append(_picture(scan, folder))
    print_report(out, report, truth)
    out.print("Masks on the scan's own grid, the report and a picture:")
    for path in paths:
        out.print(f"  {path}", highlight=False)


def _phantom(folder: Path) -> tuple[Path, Report]:
    from cli.phantom import save_phantom
    from pipeline.phantom import PhantomRecipe

    recipe = PhantomRecipe(seed=DEMO_SEED, spacing_mm=DEMO_SPACING_MM, percent_opacity=DEMO_PERCENT_OPACITY)
    truth, paths = save_phantom(recipe, folder / "phantom")
    return paths[0], truth


def _picture(scan: Path, folder: Path) -> Path:
    """What was found, drawn from the masks that came home."""
    from pipeline.geometry import LesionMask, LobeLabels
    from pipeline.io.overview import draw_overview
    from pipeline.io.read import read_ct

    path, volume = folder / "overview.png", read_ct(scan).volume
    lobes, lesions = (read_ct(folder / f"{name}.nii.gz").volume.hu for name in ("lobes", "lesions"))
    draw_overview(path, volume, LobeLabels(lobes.astype("uint8"), volume.grid), LesionMask(lesions > 0, volume.grid))
    return path
