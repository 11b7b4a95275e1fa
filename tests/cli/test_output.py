"""Reports as people read them."""

import io

from rich.console import Console

from cli.output import print_report
from jobs.models import LobeScores, LungVolumes, PercentRange, Provenance, QualityFinding, Report, SeverityScores

NAMES = ("left_upper", "left_lower", "right_upper", "right_middle", "right_lower")


def report(percent_opacity: float) -> Report:
    lobes = [
        LobeScores(
            lobe=name,
            label=label,
            volume_ml=1000.0 + label,
            percent_opacity=percent_opacity + label,
            percent_high_opacity=0.5,
            severity_score=1,
            high_opacity_score=0,
        )
        for label, name in enumerate(NAMES, 1)
    ]
    return Report(
        job_id="a",
        severity=SeverityScores(
            percent_opacity=percent_opacity,
            percent_high_opacity=1.25,
            lung_severity_score=5,
            lung_high_opacity_score=0,
        ),
        lungs=LungVolumes(volume_ml=5015.0, opacity_ml=100.0, high_opacity_ml=10.0),
        lobes=lobes,
        landmarks=[],
        quality=[QualityFinding(code="thick-slices", severity="warning", message="Slices are [thick].")],
        provenance=Provenance(input_sha256="0" * 64, software="0", models=[], device="cpu", seconds={}),
    )


def printed(*reports: Report) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    print_report(console, *reports)
    return console.export_text()


def row(text: str, beginning: str) -> list[str]:
    line = next(line for line in text.splitlines() if beginning in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_scores_lobes_and_findings_are_all_there() -> None:
    text = printed(report(12.34))
    assert row(text, "PO, percent opacity") == ["PO, percent opacity", "12.34"]
    assert row(text, "LSS") == ["LSS, lung severity score", "5"]
    assert row(text, "right middle") == ["right middle", "1004", "16.3", "0.5", "1"]
    assert "thick-slices Slices are [thick]." in text


def test_the_truth_stands_beside_what_was_found() -> None:
    text = printed(report(12.34), report(10.0))
    assert row(text, "PO, percent opacity") == ["PO, percent opacity", "12.34", "10.00"]
    assert row(text, "left upper") == ["left upper", "1001", "13.3", "0.5", "1", "11.0 %, 0.5 %, 1"]


def test_a_range_stands_beside_its_percentage() -> None:
    found = report(12.34)
    between = PercentRange(low=10.04, high=15.0)
    scores = found.severity.model_copy(update={"percent_opacity_range": between})
    text = printed(found.model_copy(update={"severity": scores}))
    assert row(text, "PO, percent opacity") == ["PO, percent opacity", "12.34 (10.0 to 15.0)"]
