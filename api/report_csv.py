"""Reports as a table (RFC 4180): a row a job, units in the names of columns."""

import csv
import io
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from jobs.models import JobState, LobeScores, Report, SeverityScores

#: What spreadsheets take for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def row_of(state: JobState, report: Report) -> dict[str, Any]:
    """By column; None where there is nothing."""
    by_lobe: dict[str, Any] = {}
    for scores in sorted(report.lobes, key=lambda scores: scores.label):
        by_lobe[f"{scores.lobe}_volume_ml"] = scores.volume_ml
        by_lobe |= _percentages(f"{scores.lobe}_", scores)
        by_lobe[f"{scores.lobe}_severity_score"] = scores.severity_score
        by_lobe[f"{scores.lobe}_high_opacity_score"] = scores.high_opacity_score
    return {
        "job_id": state.id,
        "client_reference": state.client_reference,
        "priority": state.priority.value,
        "created_at": _moment(state.created_at),
        "started_at": _moment(state.started_at),
        "finished_at": _moment(state.finished_at),
        **_percentages("", report.severity),
        "lung_severity_score": report.severity.lung_severity_score,
        "lung_high_opacity_score": report.severity.lung_high_opacity_score,
        "lungs_volume_ml": report.lungs.volume_ml,
        "lungs_opacity_ml": report.lungs.opacity_ml,
        "lungs_high_opacity_ml": report.lungs.high_opacity_ml,
        **by_lobe,
        "findings": _joined(finding.code for finding in report.quality),
        "models": _joined(f"{model.name}={model.version}" for model in report.provenance.models),
        "software": report.provenance.software,
        "input_sha256": report.provenance.input_sha256,
    }


def lines(rows: Iterable[dict[str, Any]], columns: Iterable[str], *, with_header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\r\n")
    if with_header:
        writer.writeheader()
    for row in rows:
        is_formula = {name for name, value in row.items() if isinstance(value, str) and value.startswith(_FORMULA)}
        writer.writerow({name: f"'{value}" if name in is_formula else value for name, value in row.items()})
    return text.getvalue()


def _moment(moment: datetime | None) -> str | None:
    """As in JSON."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _joined(words: Iterable[str]) -> str:
    """Each once."""
    return ";".join(dict.fromkeys(words))


def _percentages(prefix: str, scores: SeverityScores | LobeScores) -> dict[str, float | None]:
    between = scores.percent_opacity_range
    return {
        f"{prefix}percent_opacity": scores.percent_opacity,
        f"{prefix}percent_opacity_low": between.low if between else None,
        f"{prefix}percent_opacity_high": between.high if between else None,
        f"{prefix}percent_high_opacity": scores.percent_high_opacity,
    }
