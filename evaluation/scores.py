"""Scores of cases, true and predicted, and the CSV files that hold them."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from evaluation.errors import BadValueError, DuplicateCaseError, MissingColumnsError, TableError, UnmatchedCasesError
from evaluation.statistics import Values
from pipeline.anatomy import Lobe
from pipeline.severity import LobeSeverity, Severity

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Row:
    """Cells by column name, stripped; empty ones are left out.

    Attributes:
        place: file name and line, as an error says it.
    """

    place: str
    cells: dict[str, str]

    def parse(self, model: type[Model]) -> Model:
        """The cells as `model`.

        Raises:
            BadValueError: one of them is not what the model wants.
        """
        try:
            return model.model_validate(self.cells)
        except ValidationError as error:
            raise BadValueError(f"{self.place}: {_said(error)}") from error


@dataclass(frozen=True)
class CsvTable:
    """A CSV file with at least one row; `columns` are those of its header."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, needed: Collection[str]) -> None:
        """Raises: MissingColumnsError: some of `needed` are not there."""
        missing = [column for column in needed if column not in self.columns]
        if missing:
            raise MissingColumnsError(
                f"{self.name}: column{_s(missing)} {_listed(missing)} missing; it has {_listed(self.columns)}. "
                "Name the columns as docs/evaluation.md lists them."
            )

    def require_unique(self, column: str) -> None:
        """Raises: DuplicateCaseError: two rows have the same value in `column`."""
        seen: dict[str, Row] = {}
        for row in self.rows:
            value = row.cells.get(column, "")
            if value in seen:
                raise DuplicateCaseError(
                    f"{row.place}: {column} {value!r} stands already in {seen[value].place}. Keep one row a case."
                )
            seen[value] = row


def read_table(path: Path) -> CsvTable:
    """Read a comma-separated UTF-8 file whose first line names its columns.

    Raises:
        TableError: there is no such file, it is no such table, or it has no row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _table(path.name, file.read())
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}). Give a CSV file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path.name}: no CSV file in UTF-8. Save it as comma-separated UTF-8 text.") from error


def _table(name: str, text: str) -> CsvTable:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [cell.strip() for cell in next(reader, [])]
    if len(header) == 1 and ";" in header[0]:
        raise TableError(f"{name}: its columns are separated by semicolons. Separate them by commas.")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise TableError(f"{name}: column{_s(repeated)} {_listed(repeated)} stand twice. Keep one of each.")
    rows = tuple(_row(f"{name}, line {reader.line_num}", header, cells) for cells in reader if any(cells))
    if not rows:
        raise TableError(f"{name}: there are no rows. Give a header and a row for each case.")
    return CsvTable(name, tuple(header), rows)


def _row(place: str, header: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise TableError(f"{place}: {len(cells)} cells for {len(header)} columns. Put text with commas in quotes.")
    return Row(place, {column: cell.strip() for column, cell in zip(header, cells, strict=True) if cell.strip()})


def _said(error: ValidationError) -> str:
    """The first complaint, in one sentence."""
    first = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{column} is empty. Fill it in, or leave the case out of both files."
    message = str(first["msg"]).removeprefix("Value error, ")
    if not column:
        return message
    return f"{column} is {first['input']!r}: {message[0].lower()}{message[1:]}."


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)


def _s(names: Collection[str]) -> str:
    return "s" if len(names) > 1 else ""


Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
LobeGrade = Annotated[int, Field(ge=0, le=4)]
SumOfGrades = Annotated[int, Field(ge=0, le=20)]

ROUNDING_PERCENT: Final = 0.01
"""By so much a rounded PHO may pass a rounded PO."""


class Metric(Enum):
    """The four scores of the paper; the value is the column in CSV files."""

    PO = "percent_opacity"
    PHO = "percent_high_opacity"
    LSS = "lung_severity_score"
    LHOS = "lung_high_opacity_score"

    @property
    def is_percent(self) -> bool:
        """Whether it is continuous: PO and PHO, in percent of the lungs; LSS and LHOS are whole numbers, 0-20."""
        return self in (Metric.PO, Metric.PHO)

    @property
    def unit(self) -> str:
        return "%" if self.is_percent else "points"

    @property
    def highest(self) -> int:
        return 100 if self.is_percent else 20

    @property
    def words(self) -> str:
        """`percent opacity`."""
        return self.value.replace("_", " ")


@dataclass(frozen=True)
class LobeScores:
    """One lobe: percentages of its volume, and their grades 0-4."""

    lobe: Lobe
    percent_opacity: float
    percent_high_opacity: float
    severity_score: int
    high_opacity_score: int


@dataclass(frozen=True)
class CaseScores:
    """One case of one side. `lobes` holds all five, or none where they are not known."""

    case: str
    percent_opacity: float
    percent_high_opacity: float
    lung_severity_score: int
    lung_high_opacity_score: int
    lobes: tuple[LobeScores, ...] = ()
    group: str | None = None

    def of(self, metric: Metric) -> float:
        return float(getattr(self, metric.value))


@dataclass(frozen=True)
class PairedScores:
    """Truth and prediction of the same cases, in the same order."""

    truth: tuple[CaseScores, ...]
    predicted: tuple[CaseScores, ...]
    unused_columns: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def cases(self) -> tuple[str, ...]:
        return tuple(scores.case for scores in self.truth)

    @property
    def groups(self) -> tuple[str | None, ...]:
        return tuple(t.group or p.group for t, p in zip(self.truth, self.predicted, strict=True))

    @property
    def have_lobes(self) -> bool:
        return bool(self.truth) and all(scores.lobes for scores in (*self.truth, *self.predicted))

    def values(self, metric: Metric) -> tuple[Values, Values]:
        """True and predicted values of a metric."""
        return _array(self.truth, metric), _array(self.predicted, metric)

    def where(self, wanted: Sequence[bool]) -> "PairedScores":
        """The cases for which `wanted` is true."""
        keep = [index for index, is_wanted in enumerate(wanted) if is_wanted]
        return PairedScores(tuple(self.truth[i] for i in keep), tuple(self.predicted[i] for i in keep))


class _ScoreRow(BaseModel):
    """A row without its lobes."""

    case: str
    group: str | None = None
    percent_opacity: Percent
    percent_high_opacity: Percent
    lung_severity_score: SumOfGrades
    lung_high_opacity_score: SumOfGrades

    @model_validator(mode="after")
    def _high_opacity_is_part_of_opacity(self) -> "_ScoreRow":
        if self.percent_high_opacity > self.percent_opacity + ROUNDING_PERCENT:
            raise ValueError("percent_high_opacity exceeds percent_opacity, of which it is a part. Are they swapped?")
        if self.lung_high_opacity_score > self.lung_severity_score:
            raise ValueError("lung_high_opacity_score exceeds lung_severity_score. Are they swapped?")
        return self


LOBE_FIELDS: Final[dict[str, Any]] = {
    "percent_opacity": Percent,
    "percent_high_opacity": Percent,
    "severity_score": LobeGrade,
    "high_opacity_score": LobeGrade,
}

LOBE_COLUMNS: Final = tuple(f"{lobe.slug}_{name}" for lobe in Lobe for name in LOBE_FIELDS)
"""`left_upper_percent_opacity` and so on: all twenty, or none."""

NEEDED_COLUMNS: Final = ("case", *(metric.value for metric in Metric))

_LobesRow: Final = create_model(  # type: ignore[call-overload]
    "_LobesRow", **{f"{lobe.slug}_{name}": (kind, ...) for lobe in Lobe for name, kind in LOBE_FIELDS.items()}
)


def read_scores(path: Path) -> tuple[tuple[CaseScores, ...], tuple[str, ...]]:
    """The scores of a CSV file, and its columns that mean nothing here.

    Raises:
        TableError: the file is no such table, or holds what cannot be; the text says where.
    """
    table = read_table(path)
    table.require(NEEDED_COLUMNS)
    table.require_unique("case")
    present = [column for column in LOBE_COLUMNS if column in table.columns]
    if present and len(present) < len(LOBE_COLUMNS):
        missing = [column for column in LOBE_COLUMNS if column not in table.columns]
        raise MissingColumnsError(
            f"{table.name}: of the lobes, {', '.join(missing)} missing. Give all {len(LOBE_COLUMNS)} columns or none."
        )
    has_lobes = bool(present)
    if "group" in table.columns:
        _require_groups(table)
    unused = tuple(c for c in table.columns if c not in (*NEEDED_COLUMNS, *LOBE_COLUMNS, "group"))
    return tuple(_scores(row, has_lobes) for row in table.rows), unused


def write_scores(path: Path, rows: Iterable[CaseScores]) -> None:
    """Write a CSV file that `read_scores` reads back."""
    listed = list(rows)
    has_lobes, has_groups = all(row.lobes for row in listed), any(row.group for row in listed)
    columns = [*NEEDED_COLUMNS, *(["group"] if has_groups else []), *(LOBE_COLUMNS if has_lobes else ())]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_cells(row) for row in listed)


def read_pairs(truth: Path, predicted: Path) -> PairedScores:
    """Two CSV files side by side, in the order of the truth.

    Raises:
        TableError: one of the files is not what it should be.
        UnmatchedCasesError: they do not hold the same cases, or give a case different groups.
    """
    (true_rows, unused), (predicted_rows, also_unused) = read_scores(truth), read_scores(predicted)
    return match(true_rows, predicted_rows, tuple(dict.fromkeys((*unused, *also_unused))))


def match(
    truth: Sequence[CaseScores], predicted: Sequence[CaseScores], unused_columns: tuple[str, ...] = ()
) -> PairedScores:
    """Put the predictions in the order of the truth.

    Raises:
        UnmatchedCasesError: not the same cases, or different groups.
    """
    found = {scores.case: scores for scores in predicted}
    lacking = [scores.case for scores in truth if scores.case not in found]
    foreign = sorted(found.keys() - {scores.case for scores in truth})
    if lacking or foreign:
        said = []
        if lacking:
            said.append(f"{_some(lacking)} in the truth alone")
        if foreign:
            said.append(f"{_some(foreign)} in the prediction alone")
        unmatched = f"{'; '.join(said)}. Give each case in both, under the same name."
        raise UnmatchedCasesError(unmatched)
    paired = PairedScores(tuple(truth), tuple(found[scores.case] for scores in truth), unused_columns)
    for mine, other in zip(paired.truth, paired.predicted, strict=True):
        if mine.group and other.group and mine.group != other.group:
            raise UnmatchedCasesError(
                f"Case {mine.case!r} is of group {mine.group!r} in the truth and {other.group!r} in the prediction. "
                "Correct one, or leave the column out of the prediction."
            )
    return paired


def scores_of(case: str, severity: Severity, group: str | None = None) -> CaseScores:
    """What the project's own severity code says about a case."""
    return CaseScores(
        case=case,
        percent_opacity=severity.percent_opacity,
        percent_high_opacity=severity.percent_high_opacity,
        lung_severity_score=severity.lung_severity_score,
        lung_high_opacity_score=severity.lung_high_opacity_score,
        lobes=tuple(_lobe_scores_of(lobe) for lobe in severity.lobes),
        group=group,
    )


def _lobe_scores_of(lobe: LobeSeverity) -> LobeScores:
    return LobeScores(
        lobe.lobe, lobe.percent_opacity, lobe.percent_high_opacity, lobe.severity_score, lobe.high_opacity_score
    )


def _array(rows: Sequence[CaseScores], metric: Metric) -> Values:
    return np.array([scores.of(metric) for scores in rows], dtype=np.float64)


def _require_groups(table: CsvTable) -> None:
    for row in table.rows:
        if "group" not in row.cells:
            raise BadValueError(f"{row.place}: group is empty. Name the group of each case, or leave the column out.")


def _scores(row: Row, has_lobes: bool) -> CaseScores:
    scores = row.parse(_ScoreRow)
    lobes = _lobes(row.parse(_LobesRow)) if has_lobes else ()
    return CaseScores(**scores.model_dump(), lobes=lobes)


def _lobes(row: BaseModel) -> tuple[LobeScores, ...]:
    return tuple(
        LobeScores(lobe, **{name: getattr(row, f"{lobe.slug}_{name}") for name in LOBE_FIELDS}) for lobe in Lobe
    )


def _cells(scores: CaseScores) -> dict[str, object]:
    cells: dict[str, object] = {"case": scores.case, "group": scores.group}
    cells |= {metric.value: _cell(getattr(scores, metric.value)) for metric in Metric}
    for lobe in scores.lobes:
        cells |= {f"{lobe.lobe.slug}_{name}": _cell(getattr(lobe, name)) for name in LOBE_FIELDS}
    return cells


def _cell(value: float | int) -> float | int:
    """A millionth of a percent is a thousandth of a voxel."""
    return round(value, 6) if isinstance(value, float) else value


def _some(cases: Sequence[str]) -> str:
    shown = ", ".join(repr(case) for case in cases[:5])
    more = f" and {len(cases) - 5} more" if len(cases) > 5 else ""
    return f"{'Cases' if len(cases) > 1 else 'Case'} {shown}{more} {'are' if len(cases) > 1 else 'is'}"
