"""The report as one folder: `report.html`, `report.md`, `report.json` and `figures/`, as PNG and SVG."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from evaluation.analysis import Analysis
from evaluation.figures import draw_all
from evaluation.masks import Compared
from evaluation.overlays import draw_cases
from evaluation.statistics import RESAMPLES, NotDefined
from evaluation.tables import all_tables

SCHEMA_VERSION: Final = "1.0"
FIGURES: Final = "figures"

#: Tables 3 and 4 of the paper and its false alarms stand before the figures.
FIRST_TABLES: Final = 3


@dataclass(frozen=True)
class About:
    """On what data the report was made.

    Attributes:
        label: what kind of data they are, such as "simulated cohort"; stands on every page and figure.
        note: anything else that a reader must know.
        software: version of Lobewise that made the report (not the one that predicted).
        inputs: sha256 by file name.
    """

    label: str
    note: str
    software: str
    inputs: Mapping[str, str]


def write_report(folder: Path, analysis: Analysis, about: About, compared: Compared | None = None) -> list[Path]:
    """Write the report and return its pages; the same input gives the same bytes.

    Args:
        folder: made if need be; files of an earlier report in it are replaced.
        compared: with masks, the report shows cases too.
    """
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    figures = list(draw_all(analysis, folder / FIGURES, about.label))
    if compared is not None and (cases := draw_cases(analysis, compared, folder / FIGURES, about.label)) is not None:
        figures.append(cases)
    tables = all_tables(analysis)
    page = {
        "about": about,
        **_counts(analysis),
        "unused_columns": analysis.scores.unused_columns,
        "seed": analysis.seed,
        "resamples": RESAMPLES,
        "figures": figures,
        "first_tables": tables[:FIRST_TABLES],
        "further_tables": tables[FIRST_TABLES:],
    }
    pages = {
        "report.html": _environment(is_html=True).get_template("report.html.j2").render(page),
        "report.md": _environment(is_html=False).get_template("report.md.j2").render(page),
        # NaN is no JSON: a statistic without a value is `NotDefined`.
        "report.json": json.dumps(as_data(analysis, about), indent=2, allow_nan=False, ensure_ascii=False) + "\n",
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def as_data(analysis: Analysis, about: About) -> dict[str, Any]:
    """The report as JSON holds it. What is not defined is `{"not_defined": why}`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "about": _plain(about),
        **_counts(analysis),
        "analysis": _plain(analysis),
    }


def _counts(analysis: Analysis) -> dict[str, int]:
    return {"cases": len(analysis.scores), "diseased": len(analysis.diseased), "controls": len(analysis.controls)}


def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("evaluation"),
        # Labels are whatever their author typed; Markdown has the filter `cell`.
        autoescape=is_html,  # noqa: S701 (off for Markdown alone)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown
    return environment


def _markdown(text: object) -> str:
    """Text that stays text in a Markdown cell."""
    plain = " ".join(str(text).split())
    for character in "\\`*_[]<>|#":
        plain = plain.replace(character, f"\\{character}")
    return plain


def _plain(value: Any) -> Any:
    """Dataclasses, enums and arrays as JSON holds them."""
    if isinstance(value, NotDefined):
        return {"not_defined": value.why}
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
