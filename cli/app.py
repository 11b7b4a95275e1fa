"""The commands. What they do is in the modules that they import when they are called."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.audit import audit
from cli.keys import keys
from cli.output import Exit, ServiceError, err, fail, needs, out, print_report, require
from jobs.models import Report
from jobs.version import __version__

app = typer.Typer(
    name="lobewise",
    help="Severity of lung opacities on chest CT, per lobe. Research use only; not a medical device.",
    epilog="Exit codes: 0 done, 1 unexpected fault, 2 wrong call or missing part, 3 scan refused, 4 service problem.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback with locals could print a patient's data.
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(audit)
app.add_typer(keys)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", envvar="LOBEWISE_DEVICE")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Folder of other weights than those that come with the package.", envvar="LOBEWISE_WEIGHTS_DIR"),
]
ScanPath = Annotated[
    Path, typer.Argument(help="NIfTI, NRRD, MetaImage, or a DICOM series as zip or folder.", exists=True)
]
TrainedStage = Annotated[
    Literal["landmarks", "lungs", "lesions"],
    typer.Argument(help="The network: landmarks, lungs (with lobes) or lesions."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for masks and report.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")]


def main() -> None:
    """The entry point of the `lobewise` command."""
    from cli.local import end_with_supervisor
    from jobs.errors import SettingsError, UnavailableError

    end_with_supervisor()
    try:
        app()
    except SettingsError as error:
        sys.exit(fail(Exit.USAGE, str(error)).exit_code)
    except ServiceError as error:
        sys.exit(fail(Exit.SERVICE_PROBLEM, str(error)).exit_code)
    except UnavailableError as error:
        sys.exit(fail(Exit.SERVICE_PROBLEM, f"{str(error)[:1].upper()}{str(error)[1:]}.").exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"lobewise {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    _version_wanted: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:  [bold]lobewise score scan.nii.gz[/]   [bold]lobewise score dicom.zip --out result[/]   "
    "[bold]lobewise score dicom-folder --json | jq .severity[/]"
)
def score(
    scan: ScanPath,
    out_dir: Out = None,
    as_json: AsJson = False,
    device: Device = "auto",
    weights: Weights = None,
    lung_stage: Annotated[
        Literal["di2in", "lungmask"],
        typer.Option(help="Who draws lungs and lobes; lungmask needs its extra.", envvar="LOBEWISE_LUNG_STAGE"),
    ] = "di2in",
) -> None:
    """Score one scan here, without a service."""
    require("torch", "worker")
    from cli.score import save, score_here

    scored = score_here(scan, device, weights, lung_stage)
    _print_result(scored.report, save(scored, out_dir) if out_dir else [], as_json=as_json)


@app.command(
    epilog="Examples:  [bold]lobewise inspect scan.nii.gz[/]   [bold]lobewise inspect dicom.zip --picture slices.png[/]"
    "   [bold]lobewise inspect dicom-folder --json > inspection.json[/]"
)
def inspect(
    scan: ScanPath,
    picture: Annotated[Path | None, typer.Option(help="PNG of the three middle slices, to be written.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was seen as JSON.")] = False,
) -> None:
    """Say what the reader sees in a file, without scoring it: format, geometry, series, findings, histogram.

    What is printed names no patient, so that it can be sent with a report of a fault. A picture shows the scan itself.
    """
    from cli.inspect import inspect as look_into
    from cli.inspect import print_inspection

    seen = look_into(scan, picture)
    if as_json:
        typer.echo(seen.model_dump_json(indent=2))
    else:
        print_inspection(out, seen)
    if seen.refused is not None:
        raise typer.Exit(Exit.SCAN_REFUSED)
    _say_where([picture] if picture else [])


@app.command(
    epilog="Examples:  [bold]lobewise submit scan.nii.gz[/]   "
    "[bold]lobewise submit dicom-folder -s https://lobewise.example --priority stat --out result[/]"
)
def submit(
    scan: ScanPath,
    service: Annotated[
        str, typer.Option("--service", "-s", help="Address of the service.", envvar="LOBEWISE_SERVICE")
    ] = "http://127.0.0.1:8000",
    out_dir: Out = None,
    as_json: AsJson = False,
    priority: Annotated[str, typer.Option(help="stat, routine or batch.")] = "routine",
    # From the environment or a file alone: other users see the arguments of a command.
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File that has the key; by default the variable LOBEWISE_API_KEY.", exists=True, dir_okay=False
        ),
    ] = None,
) -> None:
    """Send one scan to a running service, and wait for its scores. A folder is zipped on the way."""
    with needs("submit"):
        from cli.client import connected, score_remotely

    try:
        with connected(service, key_file) as client:
            result, report = score_remotely(client, scan, priority)
            paths = result.save(out_dir) if out_dir else []
    except ServiceError as error:
        raise fail(Exit.SERVICE_PROBLEM, str(error), "Start one with: lobewise serve") from error
    _print_result(report, paths, as_json=as_json)


@app.command(epilog="Example:  [bold]lobewise serve --port 8080[/], then [bold]curl localhost:8080/readyz[/]")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 or :: lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of jobs, masks and reports.", envvar="LOBEWISE_DATA_DIR")
    ] = None,
    device: Device = "auto",
) -> None:
    """Run the whole service here: embedded server, gateway, one worker and one sender. Ctrl-C stops it.

    /readyz answers 200 once the worker has loaded its models. Jobs in the data folder outlive the service.
    """
    from cli.local import local_service, terminated_like_interrupted, watch
    from jobs.private_files import keep_private
    from jobs.settings import JobsSettings, read_settings

    keep_private(read_settings(JobsSettings))
    try:
        with terminated_like_interrupted(), local_service(host, port, data_dir, device) as local:
            err.print(f"Ready at {local.address}  (description: {local.address}/docs)", highlight=False)
            watch(local)
    except KeyboardInterrupt:
        err.print("Stopped.")


@app.command(
    epilog="Other settings are environment variables: LOBEWISE_REDIS_URL, LOBEWISE_BLOB_URL, LOBEWISE_DATA_DIR, "
    "LOBEWISE_API_PUBLIC_URL and more."
)
def api(
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="LOBEWISE_API_HOST")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes any.", min=0, max=65535, envvar="LOBEWISE_API_PORT")
    ] = 8000,
) -> None:
    """Run the gateway alone: HTTP in, jobs out. Workers elsewhere do the work."""
    with needs("api"):
        from api.app import run
    run(host=host, port=port)


@app.command(
    epilog="Other settings are environment variables: LOBEWISE_REDIS_URL, LOBEWISE_BLOB_URL, LOBEWISE_DEVICE and more."
)
def worker(
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default="auto")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Scans at a time, each with models of its own.", min=1, show_default="1")
    ] = None,
) -> None:
    """Run a worker alone: it takes jobs from the queue and scores them."""
    require("torch", "worker")
    with needs("worker"):
        from worker.main import run
    raise typer.Exit(run(device=device, concurrency=concurrency))


@app.command(
    epilog="Other settings are environment variables: LOBEWISE_CALLBACK_ALLOWLIST, LOBEWISE_CALLBACK_SECRETS and more."
)
def sender() -> None:
    """Run a sender alone: it tells the receivers of callbacks how jobs ended."""
    from api.callback_sender import run

    run()


@app.command(epilog="Example:  [bold]lobewise callback-secret radiology[/]")
def callback_secret(
    tenant: Annotated[str, typer.Argument(help="Whose; those of `default` are the ones that are kept.")] = "default",
) -> None:
    """Print what a tenant's receivers check callbacks with: one secret a line, newest first.

    It needs what the sender needs: LOBEWISE_CALLBACK_SECRETS, or the data folder.
    """
    from api.callback_message import callback_secrets
    from jobs.access.caller import is_tenant
    from jobs.errors import UnavailableError
    from jobs.settings import JobsSettings, read_settings

    if not is_tenant(tenant):
        raise fail(Exit.USAGE, f"{tenant!r} is no tenant's name: up to 63 of a-z, 0-9 and -, beginning with none.")
    try:
        secrets = callback_secrets(read_settings(JobsSettings), tenant)
    except UnavailableError as error:
        raise fail(Exit.SERVICE_PROBLEM, str(error)) from error
    for secret in secrets:
        print(secret)


@app.command(
    epilog="Example:  [bold]lobewise phantom out/phantom --opacity 12 --seed 7[/], then "
    "[bold]lobewise score out/phantom/ct.nii.gz[/]"
)
def phantom(
    folder: Annotated[Path, typer.Argument(help="Folder for ct.nii.gz, the true masks and truth.json.")],
    seed: Annotated[int, typer.Option(help="The same seed makes the same patient.")] = 0,
    spacing: Annotated[
        tuple[float, float, float], typer.Option(help="Voxel size in mm: between slices, rows, columns.")
    ] = (2.0, 1.5, 1.5),
    opacity: Annotated[
        float | None, typer.Option(help="Percent of the lungs that is opaque; drawn from the seed by default.")
    ] = None,
    orientation: Annotated[
        str, typer.Option(help="Where the array's x, y and z axis lead: one each of L/R, P/A, S/I.")
    ] = "LPS",
    fit: Annotated[
        str, typer.Option(help="What the scan covers: chest, upper-chest, lower-chest, abdomen or head.")
    ] = "chest",
) -> None:
    """Make a thorax whose scores are known: for trying out, testing and teaching."""
    from cli.phantom import direction_of, recipe_of, save_phantom

    try:
        recipe = recipe_of(seed=seed, spacing_mm=spacing, direction=direction_of(orientation), fit=fit, opacity=opacity)
    except ValueError as error:
        raise fail(Exit.USAGE, str(error)) from error
    truth, paths = save_phantom(recipe, folder)
    _print_result(truth, paths)


@app.command(epilog="Example:  [bold]LOBEWISE_REDIS_URL=redis://queue:6379 lobewise doctor[/]")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check settings, broker, storage, disk, weights, device and clocks, and say what to do."""
    from cli.doctor import examine, show

    checks = list(examine())
    show(checks, as_json=as_json)
    if any(check.result == "wrong" for check in checks):
        raise typer.Exit(Exit.UNEXPECTED)


@app.command(epilog="Example:  [bold]LOBEWISE_REDIS_URL=redis://queue:6379 lobewise rebuild[/]")
def rebuild() -> None:
    """Bring every job that only the storage knows back into Redis and its queues.

    The service does so by itself when Redis was wiped, and every ten minutes; this does it now, and harms nothing.
    """
    from jobs.bootstrap import connect
    from jobs.errors import UnavailableError
    from jobs.private_files import keep_private
    from jobs.settings import JobsSettings, read_settings

    settings = read_settings(JobsSettings)
    keep_private(settings)
    jobs = connect(settings)
    try:
        restored = sum(known.reconciler.rebuild() for known in jobs.tenants.known())
    except UnavailableError as error:
        raise fail(Exit.SERVICE_PROBLEM, str(error), "lobewise doctor looks at every part.") from error
    finally:
        jobs.close()
    out.print(f"{restored} jobs were missing and are back", highlight=False)


@app.command(epilog="Example:  [bold]lobewise models verify[/]")
def models(
    action: Annotated[
        Literal["list", "verify"],
        typer.Argument(help="verify fails unless every file is the one that was shipped and has its card."),
    ] = "list",
    weights: Weights = None,
) -> None:
    """List the networks' weights, with what identifies them."""
    from cli.models import look_at, table_of

    rows = list(look_at(weights))
    out.print(table_of(rows))
    if action == "verify" and not all(row.is_ok for row in rows):
        raise fail(Exit.UNEXPECTED, "Not all weights are the ones that were shipped.")


@app.command(
    epilog="Example:  [bold]lobewise prepare lesions cohort.csv dataset[/], "
    "then [bold]lobewise train lesions dataset run[/]"
)
def prepare(
    stage: TrainedStage,
    cohort: Annotated[
        Path,
        typer.Argument(
            help="CSV of scans, masks and marks, or a folder that names them so; docs/training.md says how.",
            exists=True,
        ),
    ],
    dataset: Annotated[Path, typer.Argument(help="Folder for the prepared volumes; what is there already stays.")],
    processes: Annotated[int, typer.Option(help="Scans at a time.", min=1)] = 1,
    copies: Annotated[
        int | None,
        typer.Option(help="Of each scan, all but the first deformed.", min=1, show_default="20 landmarks, 10 lungs"),
    ] = None,
    draw_lobes: Annotated[
        bool, typer.Option("--draw-lobes", help="Where lungs alone are marked, draw lobes by the fissures.")
    ] = False,
) -> None:
    """Bring your own scans, masks and marks to the grid of a network. A tenth of the patients is kept to judge it."""
    require("torch", "worker")
    from cli.train import prepare as prepare_cohort

    count = prepare_cohort(cohort, stage, dataset, processes, copies, draw_lobes=draw_lobes)
    err.print(f"{count} volumes in {dataset}", highlight=False)


@app.command(
    epilog="Example:  [bold]lobewise train lesions dataset run[/], "
    "then [bold]lobewise score scan.nii.gz --weights run[/] with the other networks' weights copied beside it"
)
def train(
    stage: TrainedStage,
    dataset: Annotated[Path, typer.Argument(help="Folder that [bold]lobewise prepare[/] filled.", exists=True)],
    run: Annotated[Path, typer.Argument(help="Folder for checkpoints, logs and the weights.")],
    recipe: Annotated[str, typer.Option(help="JSON, or a file of it: fields of the recipe that differ.")] = "{}",
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.", min=1)] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights, or the checkpoint of another run, to begin with.", exists=True)
    ] = None,
    device: Device = "auto",
    version: Annotated[str, typer.Option(help="Of the weights, as reports will name it.")] = "0.0.0",
) -> None:
    """Train a network on prepared volumes. Ended, it goes on from its last checkpoint when called again.

    Several GPUs: torchrun --nproc-per-node 4 --no-python lobewise train lesions dataset run
    """
    require("torch", "worker")
    from cli.train import Order
    from cli.train import train as train_network

    weights = train_network(Order(stage, dataset, run, recipe, steps, start, version), device)
    _say_where([weights] if weights else [])


@app.command(
    epilog="Examples:  [bold]lobewise demo[/]   [bold]lobewise demo scan.nii.gz[/]   [bold]lobewise demo dicom/[/]"
)
def demo(
    scan: Annotated[Path | None, typer.Argument(help="A scan; a phantom by default.", exists=True)] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, report and logs.")] = Path("out/demo"),
    device: Device = "auto",
    look: Annotated[bool, typer.Option(help="Let it run on, to look at the result in a browser.")] = False,
) -> None:
    """Start the service, send it a scan over HTTP, print its scores, and stop everything again."""
    with needs("submit"):
        from cli.demo import run

    run(scan, folder, device, is_looked_at=look)


@app.command(
    epilog="Examples:  [bold]lobewise evaluate --truth truth.csv --predicted predicted.csv --label 'cohort 7'[/]   "
    "[bold]lobewise evaluate --manifest masks.csv --label 'cohort 7' --out report[/]. Columns: docs/evaluation.md"
)
def evaluate(
    label: Annotated[str, typer.Option(help="What data these are; stands on every page and figure.")],
    truth: Annotated[Path | None, typer.Option(help="CSV of true scores, a row a case.")] = None,
    predicted: Annotated[Path | None, typer.Option(help="CSV of predicted scores of the same cases.")] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV that lists CT, true and predicted masks of each case instead.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.")] = Path("out/evaluation"),
    note: Annotated[str, typer.Option(help="Anything else that a reader must know about the data.")] = "",
    controls: Annotated[str, typer.Option(help="Name of the healthy group in the column `group`.")] = "control",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
) -> None:
    """Compare predicted with true severity as the paper does, in one report with tables and figures."""
    from cli.evaluate import Request, print_summary
    from cli.evaluate import evaluate as run

    request = Request(truth, predicted, manifest, label, note, controls, seed)
    analysis, paths = run(request, folder)
    print_summary(request, analysis)
    _say_where(paths)


def _print_result(report: Report, paths: list[Path], *, as_json: bool = False) -> None:
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        print_report(out, report)
    _say_where(paths)


def _say_where(paths: list[Path]) -> None:
    for path in paths:
        err.print(f"wrote {path}", highlight=False, soft_wrap=True)
