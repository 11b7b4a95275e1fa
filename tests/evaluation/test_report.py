"""The report's folder: pages that agree, figures that can be read, and labels that are everywhere."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from evaluation.analysis import Analysis, analyse
from evaluation.masks import Compared, MaskedCase, Masks, compare
from evaluation.overlays import COLOURS
from evaluation.report import About, write_report
from evaluation.scores import PairedScores
from evaluation.statistics import Estimate, Interval, NotDefined
from evaluation.tables import all_tables, estimate, p_value
from pipeline.geometry import LesionMask
from pipeline.phantom import PhantomRecipe, make_phantom
from tests.support.evaluation_cohorts import case, noisy_cohort

LABEL = "simulated <cohort> | $1"
ABOUT = About(LABEL, "no <b>patients</b>", "9.9.9", {"truth.csv": "ab" * 32})
FIGURES = ("scatter", "planes", "bland-altman", "confusion", "calibration")


class Text(HTMLParser):
    """What a reader sees, and the pictures it asks for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen = ""
        self.images: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.seen += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images += [value for name, value in attrs if name == "src" and value]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(noisy_cohort(covid=14, controls=6))


@pytest.fixture(scope="module")
def folder(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "new" / "report", analysis, ABOUT)
    return folder / "new" / "report"


def test_the_pages_say_what_the_data_are(folder: Path) -> None:
    html, markdown = Text((folder / "report.html").read_text()), (folder / "report.md").read_text()
    data = json.loads((folder / "report.json").read_text())
    assert LABEL in html.seen
    assert "no <b>patients</b>" in html.seen
    assert markdown.count("simulated \\<cohort\\> \\| $1") >= len(FIGURES) + 8
    assert data["about"]["label"] == LABEL
    for page in (html.seen, markdown):
        assert "20 cases: 14 diseased, 6 controls" in page
        assert "Lobewise 9.9.9" in page
        assert "ab" * 32 in page
        assert "not a medical device" in page


def test_every_figure_is_there_as_png_and_svg_with_the_label(folder: Path) -> None:
    asked = Text((folder / "report.html").read_text()).images
    assert [Path(source).stem for source in asked] == list(FIGURES)
    for name in FIGURES:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "figures" / f"{name}.png")))
        assert min(pixels.shape[:2]) >= 700
        assert np.unique(pixels).size > 20
        svg = (folder / "figures" / f"{name}.svg").read_text()
        assert "simulated &lt;cohort&gt; | $1" in svg
        assert f"figures/{name}.png" in (folder / "report.md").read_text()


def test_nothing_is_fetched_and_nothing_runs(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_pages_and_data_hold_the_same_numbers(folder: Path, analysis: Analysis) -> None:
    data = json.loads((folder / "report.json").read_text())
    po = data["analysis"]["agreements"][0]
    assert po["metric"] == "PO"
    shown = f"{po['pearson']['coefficient']:.2f}"
    assert f"| {shown} \\[" in (folder / "report.md").read_text()
    assert shown in Text((folder / "report.html").read_text()).seen
    assert len(data["analysis"]["scores"]["truth"]) == len(analysis.scores)


def test_the_same_input_gives_the_same_bytes(folder: Path, analysis: Analysis, tmp_path: Path) -> None:
    write_report(tmp_path, analysis, ABOUT)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes(), path.name


@pytest.mark.parametrize("groups", [None, "control"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_what_is_not_defined_is_said_and_no_nan_is_printed(count: int, groups: str | None, tmp_path: Path) -> None:
    truth = tuple(case(str(number), [0.0] * 5, groups) for number in range(count))
    predicted = tuple(case(str(number), [3.0] * 5, groups) for number in range(count))
    write_report(tmp_path, analyse(PairedScores(truth, predicted)), ABOUT)
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / name).read_text()
        assert not re.search(r"\b(nan|NaN|inf|Infinity|None)\b", text), name
    assert "not defined: " in (tmp_path / "report.md").read_text()
    if count == 4 and groups is None:
        assert "not defined: the truth is 0 in every case" in (tmp_path / "report.md").read_text()
        assert '"not_defined": "the truth is 0 in every case"' in (tmp_path / "report.json").read_text()


def test_every_row_of_a_table_is_as_long_as_its_head(analysis: Analysis) -> None:
    for table in all_tables(analysis):
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.title


def test_cases_are_shown_with_what_was_found_missed_and_invented(tmp_path: Path) -> None:
    phantom = make_phantom(PhantomRecipe(seed=3, spacing_mm=(10.0, 9.0, 9.0), percent_opacity=20.0))
    lungs, grid = phantom.lobes.lungs(), phantom.volume.grid
    shifted = LesionMask(np.roll(phantom.lesions.mask, 2, axis=2), grid)
    masked = MaskedCase(
        "a_b", None, phantom.volume, Masks(lungs, phantom.lobes, phantom.lesions), Masks(lungs, phantom.lobes, shifted)
    )
    scores = PairedScores(
        (masked.truth.scores("a_b", masked.volume, None),), (masked.predicted.scores("a_b", masked.volume, None),)
    )
    compared = Compared(scores, tuple(compare(masked)), lambda _: masked)
    write_report(tmp_path, analyse(scores, compared.overlaps), ABOUT, compared)
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "figures" / "cases.png")))[..., :3].astype(int)
    for rgb in COLOURS.values():
        assert (np.abs(pixels - np.array(rgb)).max(axis=-1) <= 1).sum() > 100  # its patch in the legend
    assert "Overlap of the masks" in (tmp_path / "report.md").read_text()
    assert "figures/overlap.png" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "figures" / "cases.svg").is_file()


@pytest.mark.parametrize(
    ("p", "said"), [(0.0, "< .001"), (0.0009, "< .001"), (0.012, ".012"), (0.72, ".72"), (1.0, "1.00")]
)
def test_p_values_are_printed_as_in_the_paper(p: float, said: str) -> None:
    assert p_value(p) == said


def test_estimates_in_words() -> None:
    assert estimate(Estimate(3.14159, Interval(-0.001, 4.0))) == "3.14 [0.00, 4.00]"
    assert estimate(Estimate(1.0, NotDefined("2 cases"))) == "1.00 (no interval: 2 cases)"
    assert estimate(NotDefined("no case")) == "not defined: no case"
