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
from pipeline.severity import Severity

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
LobeGrade = Annotated[int, Field(ge=0, le=4)]
SumOfGrades = Annotated[int, Field(ge=0, le=20)]

Model = TypeVar("Model", bound=BaseModel)

#: By so much a rounded PHO may pass a rounded PO: some tables hold two decimals.
ROUNDING_PERCENT: Final = 0.01
#: Decimals of written percentages: a millionth of a percent of a lung is a thousandth of a voxel.
WRITTEN_DECIMALS: Final = 6


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
        truth, predicted = (np.array([s.of(metric) for s in side], np.float64) for side in (self.truth, self.predicted))
        return truth, predicted

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

#: `left_upper_percent_opacity` and so on: all twenty, or none.
LOBE_COLUMNS: Final = tuple(f"{lobe.slug}_{name}" for lobe in Lobe for name in LOBE_FIELDS)

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
    table.require_cases(NEEDED_COLUMNS)
    # All lobes or none: with some of them no agreement by lobe could be given, and nobody would notice.
    present = [column for column in LOBE_COLUMNS if column in table.columns]
    if present and len(present) < len(LOBE_COLUMNS):
        missing = [column for column in LOBE_COLUMNS if column not in table.columns]
        raise MissingColumnsError(
            f"{table.name}: of the lobes, {', '.join(missing)} missing. Give all {len(LOBE_COLUMNS)} columns or none."
        )
    table.require_groups()
    unused = tuple(c for c in table.columns if c not in (*NEEDED_COLUMNS, *LOBE_COLUMNS, "group"))
    cases = []
    for row in table.rows:
        scores = row.parse(_ScoreRow).model_dump()
        lobes: tuple[LobeScores, ...] = ()
        if present:
            cells = row.parse(_LobesRow).model_dump()
            lobes = tuple(LobeScores(lobe, **{n: cells[f"{lobe.slug}_{n}"] for n in LOBE_FIELDS}) for lobe in Lobe)
        cases.append(CaseScores(**scores, lobes=lobes))
    return tuple(cases), unused


def write_scores(path: Path, rows: Iterable[CaseScores]) -> None:
    """Write a CSV file that `read_scores` reads back."""
    listed = list(rows)
    has_lobes, has_groups = all(row.lobes for row in listed), any(row.group for row in listed)
    columns = [*NEEDED_COLUMNS, *(["group"] if has_groups else []), *(LOBE_COLUMNS if has_lobes else ())]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in listed:
            cells: dict[str, Any] = {"case": row.case, "group": row.group}
            cells |= {metric.value: getattr(row, metric.value) for metric in Metric}
            for lobe in row.lobes:
                cells |= {f"{lobe.lobe.slug}_{name}": getattr(lobe, name) for name in LOBE_FIELDS}
            writer.writerow({k: round(v, WRITTEN_DECIMALS) if isinstance(v, float) else v for k, v in cells.items()})


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
        alone = []
        for cases, side in ((lacking, "truth"), (foreign, "prediction")):
            if cases:
                more = f" and {len(cases) - 5} more" if len(cases) > 5 else ""
                noun, verb = ("Cases", "are") if len(cases) > 1 else ("Case", "is")
                alone.append(f"{noun} {', '.join(map(repr, cases[:5]))}{more} {verb} in the {side} alone")
        raise UnmatchedCasesError(f"{'; '.join(alone)}. Give each case in both, under the same name.")
    paired = PairedScores(tuple(truth), tuple(found[scores.case] for scores in truth), unused_columns)
    for mine, other in zip(paired.truth, paired.predicted, strict=True):
        if mine.group and other.group and mine.group != other.group:
            raise UnmatchedCasesError(
                f"Case {mine.case!r} is of group {mine.group!r} in the truth and {other.group!r} in the prediction. "
                "Correct one, or leave the column out of the prediction."
            )
    return paired


def scores_of(case: str, severity: Severity, group: str | None = None) -> CaseScores:
    """A case as the project's own severity code scores it."""
    scores: dict[str, Any] = {metric.value: getattr(severity, metric.value) for metric in Metric}
    lobes = tuple(
        LobeScores(s.lobe, s.percent_opacity, s.percent_high_opacity, s.severity_score, s.high_opacity_score)
        for s in severity.lobes
    )
    return CaseScores(case=case, **scores, lobes=lobes, group=group)


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
            # The first complaint alone, in one sentence: people mend a table cell by cell.
            first = error.errors(include_url=False)[0]
            column, message = ".".join(map(str, first["loc"])), str(first["msg"]).removeprefix("Value error, ")
            if first["type"] == "missing":
                message = f"{column} is empty. Fill it in, or leave the case out of both files."
            elif column:
                message = f"{column} is {first['input']!r}: {message[0].lower()}{message[1:]}."
            raise BadValueError(f"{self.place}: {message}") from error


@dataclass(frozen=True)
class CsvTable:
    """A CSV file with at least one row; `columns` are those of its header."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require_cases(self, needed: Collection[str]) -> None:
        """Raises: MissingColumnsError: some of `needed` are not there. DuplicateCaseError: a case has two rows."""
        missing = [column for column in needed if column not in self.columns]
        if missing:
            raise MissingColumnsError(
                f"{self.name}: column{_s(missing)} {', '.join(missing)} missing; it has {', '.join(self.columns)}. "
                "Name the columns as docs/evaluation.md lists them."
            )
        seen: dict[str, Row] = {}
        for row in self.rows:
            case = row.cells.get("case", "")
            if case in seen:
                said = f"case {case!r} stands already in {seen[case].place}. Keep one row a case."
                raise DuplicateCaseError(f"{row.place}: {said}")
            seen[case] = row

    def require_groups(self) -> None:
        """Raises: BadValueError: there is a column `group`, and a row leaves it empty."""
        for row in self.rows if "group" in self.columns else ():
            if "group" not in row.cells:
                said = "group is empty. Name the group of each case, or leave the column out."
                raise BadValueError(f"{row.place}: {said}")


def read_table(path: Path) -> CsvTable:
    """Read a comma-separated UTF-8 file whose first line names its columns.

    Raises:
        TableError: there is no such file, it is no such table, or it has no row.
    """
    try:
        # Spreadsheets begin UTF-8 with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(io.StringIO(file.read(), newline=""), strict=True)
        header = [cell.strip() for cell in next(reader, [])]
        if len(header) == 1 and ";" in header[0]:
            raise TableError(f"{path.name}: its columns are separated by semicolons. Separate them by commas.")
        repeated = sorted({column for column in header if header.count(column) > 1})
        if repeated:
            said = f"column{_s(repeated)} {', '.join(repeated)} stand twice. Keep one of each."
            raise TableError(f"{path.name}: {said}")
        rows = []
        for cells in filter(any, reader):
            place = f"{path.name}, line {reader.line_num}"
            if len(cells) != len(header):
                said = f"{len(cells)} cells for {len(header)} columns. Put text with commas in quotes."
                raise TableError(f"{place}: {said}")
            filled = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
            rows.append(Row(place, filled))
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}). Give a CSV file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path.name}: no CSV file in UTF-8. Save it as comma-separated UTF-8 text.") from error
    if not rows:
        raise TableError(f"{path.name}: there are no rows. Give a header and a row for each case.")
    return CsvTable(path.name, tuple(header), tuple(rows))


def _s(names: Collection[str]) -> str:
    return "s" if len(names) > 1 else ""
