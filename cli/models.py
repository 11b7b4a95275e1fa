"""`lobewise models`: which weights there are, and whether they are the ones that were shipped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from cli.output import needs, titled_table

with needs("worker"):
    from pipeline.networks.weights import MODEL_NAMES, WeightsError, load_weights, shipped_weights_dir


@dataclass(frozen=True)
class ModelRow:
    """A network's weights, as they lie on disk; `result` is `ok`, or what is wrong with them."""

    name: str
    version: str
    sha256: str
    parameters: int
    result: str

    @property
    def is_ok(self) -> bool:
        return self.result == "ok"


def look_at(folder: Path | None) -> Iterator[ModelRow]:
    """Each of the three networks."""
    where = folder or shipped_weights_dir()
    # The list is in the format of sha256sum, so that `sha256sum -c` checks it where nothing of ours is installed.
    sums = where / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    digests = {file_name.lstrip("*"): digest for digest, file_name in (line.split() for line in lines if line)}
    for name in MODEL_NAMES:
        try:
            weights = load_weights(name, where)
        except WeightsError as error:
            yield ModelRow(name, "", "", 0, str(error))
            continue
        parameters = sum(tensor.numel() for tensor in weights.tensors.values())
        listed, result = digests.get(f"{name}.safetensors"), "ok"
        if listed is None:
            result = "not listed in SHA256SUMS"
        elif listed != weights.info.sha256:
            result = "not the weights that SHA256SUMS lists"
        elif not (where / f"{name}.md").is_file():
            result = "no model card"
        yield ModelRow(name, weights.info.version, weights.info.sha256, parameters, result)


def table_of(rows: list[ModelRow]) -> Table:
    table = titled_table("Networks")
    for column in ("name", "version", "parameters", "sha256", "verdict"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for row in rows:
        colour = "green" if row.is_ok else "red"
        cells = (row.name, row.version, f"{row.parameters:,}", row.sha256[:16])
        table.add_row(*cells, f"[{colour}]{row.result}[/]")
    return table
