"""`lobewise models`: which weights there are, and whether they are the ones that were shipped."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from cli.output import needs

with needs("worker"):
    from pipeline.networks.weights import MODEL_NAMES, WeightsError, load_weights, shipped_weights_dir


@dataclass(frozen=True)
class ModelRow:
    """A network's weights, as they lie on disk.

    Attributes:
        verdict: `ok`, or what is wrong with them.
    """

    name: str
    version: str
    sha256: str
    parameters: int
    verdict: str

    @property
    def is_ok(self) -> bool:
        return self.verdict == "ok"


def look_at(folder: Path | None) -> Iterator[ModelRow]:
    """Each of the three networks."""
    where = folder or shipped_weights_dir()
    for name in MODEL_NAMES:
        try:
            weights = load_weights(name, where)
        except WeightsError as error:
            yield ModelRow(name, "", "", 0, str(error))
            continue
        parameters = sum(tensor.numel() for tensor in weights.tensors.values())
        verdict = _verdict(where, name, weights.info.sha256)
        yield ModelRow(name, weights.info.version, weights.info.sha256, parameters, verdict)


def table_of(rows: list[ModelRow]) -> Table:
    table = Table(title="Networks", title_justify="left", title_style="bold")
    for column in ("name", "version", "parameters", "sha256", "verdict"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for row in rows:
        colour = "green" if row.is_ok else "red"
        cells = (row.name, row.version, f"{row.parameters:,}", row.sha256[:16])
        table.add_row(*cells, f"[{colour}]{row.verdict}[/]")
    return table


def _verdict(where: Path, name: str, sha256: str) -> str:
    """Against `SHA256SUMS`, which `sha256sum -c` reads too; a card must lie beside the weights."""
    sums = where / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    digests = {file_name.lstrip("*"): digest for digest, file_name in (line.split() for line in lines if line)}
    listed = digests.get(f"{name}.safetensors")
    if listed is None:
        return "not listed in SHA256SUMS"
    if listed != sha256:
        return "not the weights that SHA256SUMS lists"
    return "ok" if (where / f"{name}.md").is_file() else "no model card"
