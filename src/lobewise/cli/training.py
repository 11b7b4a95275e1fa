"""`lobewise prepare` and `lobewise train`: the networks on a cohort of one's own."""

from pathlib import Path

from rich.markup import escape

from lobewise.cli.exits import Exit, fail, needs
from lobewise.cli.progress import bar

with needs("worker"):
    from lobewise.pipeline.errors import PipelineError
    from lobewise.pipeline.training import lesions, lungs
    from lobewise.pipeline.training.cohort import CohortError, Stage, prepare_cohort, read_manifest

CALIBRATED_ON = 12
"""Volumes that the background's offset of the lung network is fitted on."""


def prepare(manifest: Path, stage: Stage, bank: Path, processes: int) -> int:
    """Bring the scans of a manifest to the grid of a stage; returns how many volumes lie in the bank."""
    try:
        rows = read_manifest(manifest)
        with bar(f"preparing {len(rows)} scans for {stage.value}") as shown:
            written = prepare_cohort(
                rows, stage, bank, processes, lambda done: shown.show(f"preparing {len(rows)} scans", done)
            )
    except (CohortError, PipelineError) as error:
        raise fail(
            Exit.SCAN_REFUSED, escape(str(error)), "Mend or remove it and call again: what is prepared stays."
        ) from error
    return len(written)


def train(stage: Stage, bank: Path, run: Path, steps: int | None, device: str, version: str) -> Path:
    """Train, or go on with a training that was ended; returns the weights file."""
    weights = run / f"{stage.value}.safetensors"
    try:
        if stage is Stage.LESIONS:
            recipe = lesions.LesionRecipe() if steps is None else lesions.LesionRecipe(steps=steps)
            lesions.train(recipe, bank, run, device)
            lesions.export(run, recipe, weights, version)
        else:
            lung_recipe = lungs.LungRecipe() if steps is None else lungs.LungRecipe(trunk_steps=steps)
            lung_run, found = lungs.open_run(bank, run, lung_recipe, device)
            lungs.follow(lung_run, found)
            lung_run.export(weights, version, found, CALIBRATED_ON)
    except FileNotFoundError as error:
        hint = f"Prepare one first:  lobewise prepare {stage.value} MANIFEST {bank}"
        raise fail(Exit.USAGE, escape(f"{bank} holds no prepared volumes."), escape(hint)) from error
    return weights
