"""A gateway with its pages, a browser that looks at them, and a worker that does as tests say.

Needs what `make test-browser` brings: the pages, playwright and Debian's chromium.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from api import examples
from api.app import create_app
from api.pages import FOLDER
from jobs.access.doors import Doors
from jobs.access.keys import KeyRing
from jobs.bootstrap import Connection, connect
from jobs.models import JobError
from jobs.settings import AccessSettings, ApiSettings, JobsSettings
from pipeline.anatomy import Lobe
from pipeline.geometry import Grid, LesionMask, Matrix, Scan, Volume
from pipeline.severity import high_opacity_of
from tests.api.conftest import serving
from tests.support.scans import boxed_lobes
from worker.report import mask_labels, write_images, write_masks

sync_api = pytest.importorskip("playwright.sync_api", reason="`make test-browser` installs playwright")
CHROMIUM = shutil.which("chromium")
WEB = Path(__file__).parents[2] / "web"
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
KEY = "k" * 40
SIZE = {"width": 1400, "height": 900}

#: Left-handed and of no common scanner: x leads to the feet, y to the right, z to the back.
FLIPPED: Matrix = ((0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0))
#: Turned by 20 degrees about the axis from feet to head.
OBLIQUE: Matrix = ((0.9396926, -0.3420201, 0.0), (0.3420201, 0.9396926, 0.0), (0.0, 0.0, 1.0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [
        name
        for name, is_there in (("chromium", CHROMIUM), ("the pages", (FOLDER / "view.html").exists()))
        if not is_there
    ]
    for item in items if missing else ():
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"{' and '.join(missing)} not here: `make test-browser`"))


def chest(direction: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))) -> tuple[Scan, SimpleNamespace]:
    """Boxes for lobes in a body, the right upper one alone full of opacity: no mirror image looks the same."""
    centre, size = np.array([0.0, 0.0, -240.0]), np.array([300.0, 240.0, 240.0])
    axes = np.asarray(direction)
    # Along the array's own axes, so that all of the boxes lie within.
    counts = np.ceil(np.abs(axes.T) @ size / 3.0).astype(int)
    origin = centre - axes @ ((counts - 1) * 3.0 / 2)
    grid = Grid((int(counts[2]), int(counts[1]), int(counts[0])), (3.0, 3.0, 3.0), tuple(origin.tolist()), direction)
    lobes = boxed_lobes(grid)
    hu = np.where(lobes.labels > 0, -850, 40).astype(np.int16)
    lesion = lobes.labels == Lobe.RIGHT_UPPER
    hu[lesion] = -300
    volume, lesions = Volume(hu, grid), LesionMask(lesion, grid)
    high = LesionMask(high_opacity_of(volume, lesion), grid)
    found = SimpleNamespace(lungs=lobes.lungs(), lobes=lobes, lesions=lesions, high_opacity=high, source=None)
    return Scan(volume, ()), found


@dataclass
class Site:
    """The gateway, and what tests do behind it."""

    address: str
    jobs: Connection
    client: httpx.Client
    folder: Path
    seen: list[str] = field(default_factory=list)

    def submit(self, **fields: str) -> str:
        nifti = (b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0").ljust(2000, b"\0")
        answer = self.client.post("/v1/jobs", files={"file": ("scan.nii", nifti)}, data={**fields, "reuse": "false"})
        job_id: str = answer.raise_for_status().json()["id"]
        return job_id

    def succeed(self, job_id: str, direction: Matrix | None = None, *, has_images: bool = True) -> str:
        scan, found = chest(direction) if direction else chest()
        (folder := self.folder / job_id).mkdir()
        masks: Any = write_masks(found, folder)  # type: ignore[arg-type]
        images = write_images(scan, found, folder, with_scan=True) if has_images else {}  # type: ignore[arg-type]
        report = examples.REPORT.model_copy(update={"job_id": job_id})
        with self.jobs.worker.claim(job_id, "test") as lease:
            self.jobs.worker.succeed(lease, report, masks, mask_labels(), images=images)
        return job_id

    def fail(self, job_id: str, error: JobError = examples.FAILURE) -> None:
        with self.jobs.worker.claim(job_id, "test") as lease:
            self.jobs.worker.fail(lease, error)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    jobs = connect(JobsSettings(data_dir=folder / "data"))
    doors = Doors(AccessSettings(first_key=KEY), KeyRing(jobs.backends.store.blobs))  # type: ignore[arg-type]
    try:
        with (
            serving(create_app(ApiSettings(), jobs, doors)) as address,
            httpx.Client(base_url=address, timeout=30, headers={"X-API-Key": KEY}) as client,
        ):
            yield Site(address, jobs, client, folder)
    finally:
        jobs.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # WebGL 2 without a graphics card; a sandbox of its own is more than a container lets root have.
        arguments = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def faults() -> list[str]:
    """What the browser complained of, and requests to others; a test that expects some takes them out."""
    return []


@pytest.fixture
def page(site: Site, browser: Any, faults: list[str]) -> Iterator[Any]:
    """A fresh browser that nobody has signed in with."""
    with browser.new_context(base_url=site.address, viewport=SIZE, locale="en-GB") as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if is_beyond(request.url, site) else None)
        yield page
        assert faults == []


def is_beyond(url: str, site: Site) -> bool:
    return not url.startswith((site.address, "data:", "blob:"))


@pytest.fixture
def signed_in(page: Any, faults: list[str]) -> Any:
    answer = page.request.post("/session", data={"key": KEY})
    assert answer.status == 204
    return page


def violations(page: Any) -> list[str]:
    """Of WCAG, as axe finds them."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
    )
    return [f"{v['id']}: {node['target']} {node['failureSummary']}" for v in found["violations"] for node in v["nodes"]]
