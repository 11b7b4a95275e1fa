"""Rows of a CSV file, with the line that each stands on, so that an error can point to it."""

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from evaluation.errors import BadValueError, DuplicateCaseError, MissingColumnsError, TableError

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
