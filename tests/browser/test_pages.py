"""The pages in a real browser: sign in, upload, watch, look, and all that can go wrong."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline.geometry import Matrix

from .conftest import FLIPPED, KEY, OBLIQUE, Site, violations

pytestmark = pytest.mark.timeout(180)

NIFTI = (b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0").ljust(2000, b"\0")


def row(page: Any, job_id: str) -> Any:
    return page.locator(f"tr[data-job='{job_id}']")


def wait_for(page: Any, shows: str) -> None:
    page.wait_for_selector(f"body[data-shows='{shows}']")


def test_nobody_sees_anything_without_a_key(page: Any, site: Site, faults: list[str]) -> None:
    page.goto("/")
    assert page.get_by_role("heading", name="Sign in").is_visible()
    assert violations(page) == []
    page.get_by_label("Key").fill("no such key")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("This key is not valid").wait_for()
    # The refusal itself; the browser says that it was one.
    assert len(faults) == 1
    assert "401" in faults.pop()
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="New scan").wait_for()
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert KEY not in cookie["value"]
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()


def test_a_scan_is_uploaded_watched_and_opened(signed_in: Any, site: Site) -> None:
    page = signed_in
    page.goto("/")
    page.get_by_label("Reference", exact=True).fill("upload-1")
    page.locator("input[type=file]").first.set_input_files({"name": "Doe^Jane.nii", "mimeType": "", "buffer": NIFTI})
    line = page.locator("tr", has_text="upload-1")
    line.get_by_text("queued").wait_for()
    job_id = line.get_attribute("data-job")
    site.succeed(job_id)
    line.get_by_text("scored").wait_for()
    assert line.get_by_text("12.3 %").is_visible()
    page.wait_for_function("document.querySelector('tr img')?.naturalWidth > 0")
    assert violations(page) == []
    line.get_by_role("link", name="Open upload-1").click()
    wait_for(page, "all")
    assert page.url == f"{site.address}/view/{job_id}"


def test_a_dropped_folder_comes_as_one_zip(signed_in: Any, site: Site, tmp_path: Path) -> None:
    page = signed_in
    (folder := tmp_path / "series of Jane").mkdir()
    for n in range(3):
        (folder / f"Doe-{n}.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(200))
    page.goto("/")
    with page.expect_request(lambda r: r.method == "POST") as sent:
        page.locator("input[type=file]").nth(1).set_input_files(folder)
    assert sent.value.response().status == 202
    job = site.client.get("/v1/jobs?limit=1").json()["items"][0]
    stored = (site.folder / "data" / "blobs" / "jobs" / job["id"] / "input").read_bytes()
    assert stored[:4] == b"PK\3\4"
    assert (stored.count(b".dcm"), b"Jane" in stored, b"Doe" in stored) == (6, False, False)


def test_jobs_are_cancelled_and_deleted_once_that_is_confirmed(signed_in: Any, site: Site) -> None:
    page = signed_in
    waiting, done = site.submit(client_reference="to-cancel"), site.submit(client_reference="to-delete")
    site.fail(done)
    page.goto("/")
    row(page, done).get_by_text("failed").wait_for()
    row(page, waiting).get_by_role("button", name="Cancel to-cancel").click()
    row(page, waiting).get_by_text("cancelled").wait_for()
    row(page, done).get_by_role("button", name="Delete to-delete").click()
    dialog = page.get_by_role("dialog")
    assert violations(page) == []
    dialog.get_by_role("button", name="Keep").click()
    assert site.client.get(f"/v1/jobs/{done}").status_code == 200
    row(page, done).get_by_role("button", name="Delete to-delete").click()
    dialog.get_by_role("button", name="Delete").click()
    row(page, done).wait_for(state="detached")
    assert site.client.get(f"/v1/jobs/{done}").status_code == 410


def test_the_list_is_searched_narrowed_and_sorted(signed_in: Any, site: Site) -> None:
    page = signed_in
    mine, other = site.submit(client_reference="needle-1"), site.submit(client_reference="hay-1")
    page.goto("/")
    row(page, mine).wait_for()
    page.get_by_role("searchbox").fill("NEEDLE")
    row(page, other).wait_for(state="detached")
    assert row(page, mine).is_visible()
    page.get_by_role("searchbox").fill("nobody has this")
    page.get_by_text("No job fits these filters.").wait_for()
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Status").select_option("failed")
    row(page, mine).wait_for(state="detached")
    page.get_by_label("Status").select_option("")
    page.get_by_label("Order").select_option("severity")
    row(page, mine).wait_for(state="detached")
    page.get_by_label("Order").select_option("created_at")
    row(page, mine).wait_for()


@pytest.fixture(scope="module")
def job_id(site: Site) -> str:
    return site.succeed(site.submit(client_reference="looked-at"))


def test_layers_windows_and_planes_are_toggled(signed_in: Any, site: Site, job_id: str) -> None:
    page = signed_in
    page.goto(f"/view/{job_id}")
    wait_for(page, "all")
    canvas = page.locator("canvas")
    assert violations(page) == []
    assert (canvas.get_attribute("data-view"), canvas.get_attribute("data-layers")) == ("multi", "lesions")
    with_lesions = pixels(canvas)
    assert red(with_lesions).sum() > 500
    page.get_by_label("Opacities", exact=True).uncheck(force=True)
    assert canvas.get_attribute("data-layers") == ""
    assert red(pixels(canvas)).sum() < 50
    page.get_by_label("Lobes", exact=True).check(force=True)
    assert set(colours(pixels(canvas))) >= {"#56b4e9", "#cc79a7"}
    for name, view in (("Axial", "axial"), ("Coronal", "coronal"), ("Sagittal", "sagittal"), ("3D", "render")):
        page.get_by_label(name, exact=True).check(force=True)
        assert canvas.get_attribute("data-view") == view
        assert pixels(canvas).std() > 5
    page.get_by_label("Axial", exact=True).check(force=True)
    page.get_by_label("Lobes", exact=True).uncheck(force=True)
    lung, page_window = pixels(canvas), page.get_by_label("Soft tissue")
    page_window.check(force=True)
    # The lungs, grey in their own window, are black in that of soft tissue.
    assert ((lung.max(axis=-1) > 60) & (pixels(canvas).max(axis=-1) < 20)).sum() > 5000


def test_a_click_on_a_lobe_leads_to_it(signed_in: Any, site: Site, job_id: str) -> None:
    page = signed_in
    page.goto(f"/view/{job_id}")
    wait_for(page, "all")
    place = page.locator("output.place")
    assert re.match(r"-300 HU · Right upper · in an opacity", place.inner_text())
    for name in ("Left lower", "Right middle", "Right upper"):
        page.locator("aside").get_by_role("button", name=name).first.click()
        assert name in place.inner_text()
    before = place.inner_text()
    page.locator("canvas").focus()
    page.keyboard.press("ArrowDown")
    assert place.inner_text() != before
    # A slice to the feet: three millimetres, from wherever in its slice the crosshair was.
    assert height_mm(before) - height_mm(place.inner_text()) == pytest.approx(3, abs=1.5)


def height_mm(place: str) -> float:
    return float(place.split(" / ")[-1].removesuffix(" mm"))


@pytest.mark.parametrize("direction", [None, FLIPPED, OBLIQUE], ids=["straight", "flipped", "oblique"])
def test_right_is_left_and_the_head_is_up(signed_in: Any, site: Site, direction: Matrix | None) -> None:
    """The patient's right upper lobe is red: on the left of the picture, and above its middle."""
    page = signed_in
    job_id = site.succeed(site.submit(), direction)
    page.goto(f"/view/{job_id}")
    wait_for(page, "all")
    canvas = page.locator("canvas")
    page.get_by_label("Opacity of the layers").fill("1")
    for name in ("Coronal", "Axial"):
        page.get_by_label(name, exact=True).check(force=True)
        picture = pixels(canvas)
        found = np.argwhere(red(picture))
        assert len(found) > 2000, name
        assert found[:, 1].mean() < 0.48 * picture.shape[1], name
        if name == "Coronal":
            assert found[:, 0].mean() < 0.48 * picture.shape[0]
    assert "Right upper" in page.locator("output.place").inner_text()


def test_a_job_without_images_is_told_plainly(signed_in: Any, site: Site, faults: list[str]) -> None:
    page = signed_in
    job_id = site.succeed(site.submit(), has_images=False)
    page.goto(f"/view/{job_id}")
    wait_for(page, "pictures")
    assert page.get_by_text("Neither scan nor pictures").is_visible()
    assert page.get_by_role("heading", name="Scores").is_visible()
    assert {fault for fault in faults if "404" not in fault} == set()
    faults.clear()
    # In the list of other tests its picture would be missing, of which a browser complains.
    site.client.delete(f"/v1/jobs/{job_id}").raise_for_status()


def test_what_is_no_result_says_so(signed_in: Any, site: Site, faults: list[str]) -> None:
    page = signed_in
    failed, waiting = site.submit(), site.submit()
    site.fail(failed)
    page.goto(f"/view/{failed}")
    page.get_by_text("No lungs were found").wait_for()
    page.goto(f"/view/{waiting}")
    page.get_by_text("There is no result: the job is queued.").wait_for()
    site.client.delete(f"/v1/jobs/{waiting}").raise_for_status()
    page.goto(f"/view/{waiting}")
    page.get_by_text("This job was deleted.").wait_for()
    assert [fault for fault in faults if "410" not in fault] == []
    faults.clear()


def test_the_pages_speak_german_too(signed_in: Any, site: Site, job_id: str) -> None:
    page = signed_in
    page.goto("/")
    page.get_by_label("Language").select_option("de")
    page.get_by_role("heading", name="Neuer Scan").wait_for()
    page.goto(f"/view/{job_id}")
    page.get_by_role("heading", name="Herkunft").or_(page.get_by_text("Herkunft")).wait_for()
    assert page.locator("html").get_attribute("lang") == "de"
    wait_for(page, "all")


def test_on_a_phone_all_of_it_is_there(signed_in: Any, site: Site, job_id: str) -> None:
    page = signed_in
    page.set_viewport_size({"width": 390, "height": 800})
    for address in ("/", f"/view/{job_id}"):
        page.goto(address)
        page.locator("tbody tr, canvas").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wait_for(page, "all")
    assert violations(page) == []


def pixels(canvas: Any) -> np.ndarray:
    """RGB, as it is seen."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        canvas.screenshot(path=file.name)
        return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(file.name)))[..., :3].astype(int)


def red(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] - picture[..., 1] > 60) & (picture[..., 0] - picture[..., 2] > 60)


def colours(picture: np.ndarray) -> list[str]:
    """Hues of labels that are seen, whatever is behind them."""
    wanted = {"#56b4e9": (86, 180, 233), "#cc79a7": (204, 121, 167)}
    seen = []
    flat = picture.reshape(-1, 3)
    for name, rgb in wanted.items():
        towards = np.array(rgb) - np.mean(rgb)
        apart = flat - flat.mean(axis=1, keepdims=True)
        likeness = apart @ towards / (np.linalg.norm(apart, axis=1) * np.linalg.norm(towards) + 1e-9)
        if ((likeness > 0.97) & (np.linalg.norm(apart, axis=1) > 15)).sum() > 200:
            seen.append(name)
    return seen
