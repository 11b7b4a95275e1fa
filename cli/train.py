"""`lobewise prepare` and `lobewise train`: the networks on a cohort of one's own."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape

from cli.output import Exit, bar, fail, needs

with needs("worker"):
    from pipeline.errors import PipelineError
    from pipeline.networks.weights import WeightsError
    from training import landmarks, lesions, lungs
    from training.config import RecipeError, read_recipe
    from training.data.cohort import CohortError, read_cohort
    from training.data.landmark_batches import LandmarkDataset, LandmarkRecipe
    from training.data.lesion_batches import LesionRecipe
    from training.data.lung_batches import LungRecipe
    from training.data.prepare import prepare_cohort
    from training.data.splits import Stage
    from training.loop import ProcessGroup, join_process_group

#: Volumes that the background's offset of the lung network is fitted on.
CALIBRATED_ON = 12


@dataclass(frozen=True)
class Order:
    """What `lobewise train` is asked for; `recipe` is JSON or the name of a file of it."""

    stage: str
    dataset: Path
    run: Path
    recipe: str
    steps: int | None
    start: Path | None
    version: str

    @property
    def weights(self) -> Path:
        return self.run / f"{self.stage}.safetensors"


def prepare(
    cohort: Path, stage: str, dataset: Path, processes: int, copies: int | None, *, draw_lobes: bool = False
) -> int:
    """Bring the scans of a cohort to the grid of a stage; returns how many volumes lie in the dataset."""
    try:
        rows = read_cohort(cohort)
        with bar(f"preparing {len(rows)} scans for {stage}") as shown:
            written = prepare_cohort(
                rows,
                Stage(stage),
                dataset,
                processes,
                lambda done: shown.show(f"preparing {len(rows)} scans", done),
                copies,
                draw_lobes=draw_lobes,
            )
    except (CohortError, PipelineError) as error:
        raise fail(
            Exit.SCAN_REFUSED, escape(str(error)), "Mend or remove it and call again: what is prepared stays."
        ) from error
    return len(written)


def train(order: Order, device: str) -> Path | None:
    """Train, or go on with a training that was ended; returns the weights file, in the first process of several."""
    follow = {Stage.LANDMARKS: _train_landmarks, Stage.LUNGS: _train_lungs, Stage.LESIONS: _train_lesions}
    try:
        with join_process_group(device) as group:
            follow[Stage(order.stage)](order, group)
            return order.weights if group.is_first else None
    except FileNotFoundError as error:
        hint = f"Prepare one first:  lobewise prepare {order.stage} COHORT {order.dataset}"
        raise fail(Exit.USAGE, escape(f"{order.dataset} holds no prepared volumes."), escape(hint)) from error
    except (RecipeError, WeightsError, ValueError) as error:
        raise fail(Exit.USAGE, escape(str(error))) from error


def _train_landmarks(order: Order, group: ProcessGroup) -> None:
    if order.steps is not None or order.start is not None:
        raise RecipeError("landmarks: give warm_steps and dqn_steps in --recipe; each agent starts anew")
    recipe = read_recipe(LandmarkRecipe, order.recipe)
    landmarks.train(recipe, LandmarkDataset.read(order.dataset, recipe.config), order.run, group)
    if group.is_first:
        landmarks.export(recipe, order.run, order.weights, order.version)


def _train_lungs(order: Order, group: ProcessGroup) -> None:
    recipe = read_recipe(LungRecipe, order.recipe)
    recipe = replace(recipe, trunk_steps=order.steps or recipe.trunk_steps)
    training = lungs.LungTraining(order.dataset, order.run, recipe, group, start=order.start)
    training.run()
    if group.is_first:
        training.export(order.weights, order.version, CALIBRATED_ON)


def _train_lesions(order: Order, group: ProcessGroup) -> None:
    recipe = read_recipe(LesionRecipe, order.recipe)
    recipe = replace(recipe, steps=order.steps or recipe.steps)
    lesions.LesionTraining(order.dataset, order.run, recipe, group, order.start).run()
    if group.is_first:
        lesions.export(order.run, recipe, order.weights, order.version)
