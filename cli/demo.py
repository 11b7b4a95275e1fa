"""`lobewise demo`: one scan through the whole service, from nothing to scores, and everything stopped again."""

import tempfile
from contextlib import suppress
from pathlib import Path

from cli.client import connected, score_remotely
from cli.local import free_port, local_service, terminated_like_interrupted, watch
from cli.output import Exit, ServiceError, err, fail, out, print_report
from jobs.models import Report

#: Of the phantom that is scored where no scan is given; slices, rows and columns.
SEED, PERCENT_OPACITY, SPACING_MM = 2020, 14.0, (3.0, 1.5, 1.5)


def run(scan: Path | None, folder: Path, device: str, *, is_looked_at: bool = False) -> None:
    """Raises: typer.Exit: with the code that says what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    truth: Report | None = None
    try:
        with terminated_like_interrupted(), tempfile.TemporaryDirectory(prefix="lobewise-demo-") as data_dir:
            if scan is None:
                from cli.phantom import save_phantom
                from pipeline.phantom import PhantomRecipe

                recipe = PhantomRecipe(seed=SEED, spacing_mm=SPACING_MM, percent_opacity=PERCENT_OPACITY)
                truth, (scan, *_masks) = save_phantom(recipe, folder / "phantom")
            err.print("Starting gateway and worker on this machine ...")
            with local_service("127.0.0.1", free_port(), Path(data_dir), device, logs=folder) as service:
                err.print(f"Both are ready at {service.address}. Posting {scan} ...", highlight=False)
                with connected(service.address) as client:
                    result, report = score_remotely(client, scan)
                    paths = result.save(folder)
                if is_looked_at:
                    print_report(out, report, truth)
                    out.print(
                        f"Look at it: {service.address}/view/{report.job_id}   (Ctrl-C stops all)", highlight=False
                    )
                    with suppress(KeyboardInterrupt):
                        watch(service)
                    return
            from pipeline.geometry import LesionMask, LobeLabels
            from pipeline.io.overview import draw_overview
            from pipeline.io.read import read_ct, read_volume

            # As `lobewise score` draws it, from the masks that came with the answer.
            overview, volume = folder / "overview.png", read_ct(scan).volume
            lobes, lesions = (read_volume(folder / f"{name}.nii.gz").volume.hu for name in ("lobes", "lesions"))
            labels, mask = LobeLabels(lobes.astype("uint8"), volume.grid), LesionMask(lesions > 0, volume.grid)
            draw_overview(overview, volume, labels, mask)
            print_report(out, report, truth)
            out.print("Masks on the scan's own grid, the report and a picture:")
            for path in (*paths, overview):
                out.print(f"  {path}", highlight=False)
    except ServiceError as error:
        raise fail(Exit.SERVICE_PROBLEM, str(error), f"The logs are in {folder}.") from error
    except KeyboardInterrupt as error:
        raise fail(Exit.SERVICE_PROBLEM, "Stopped before the scan was scored.") from error
