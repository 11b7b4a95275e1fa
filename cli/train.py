"""`lobewise prepare` and `lobewise train`: the networks on a cohort of one's own."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
    from training.loop import join_process_group

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
        what = f"preparing {len(rows)} scans"
        with bar(f"{what} for {stage}") as shown:
            report = partial(shown.show, what)
            written = prepare_cohort(rows, Stage(stage), dataset, processes, report, copies, draw_lobes=draw_lobes)
    except (CohortError, PipelineError) as error:
        hint = "Mend or remove it and call again: what is prepared stays."
        raise fail(Exit.SCAN_REFUSED, str(error), hint) from error
    return len(written)


def train(order: Order, device: str) -> Path | None:
    """Train, or go on with a training that was ended; returns the weights file, in the first process of several."""
    try:
        with join_process_group(device) as group:
            match Stage(order.stage):
                case Stage.LANDMARKS:
                    if order.steps is not None or order.start is not None:
                        reason = "landmarks: give warm_steps and dqn_steps in --recipe; each agent starts anew"
                        raise RecipeError(reason)
                    agents = read_recipe(LandmarkRecipe, order.recipe)
                    dataset = LandmarkDataset.read(order.dataset, agents.config)
                    landmarks.train(agents, dataset, order.run, group)
                    if group.is_first:
                        landmarks.export(agents, order.run, order.weights, order.version)
                case Stage.LUNGS:
                    trunk = read_recipe(LungRecipe, order.recipe)
                    trunk = replace(trunk, trunk_steps=order.steps or trunk.trunk_steps)
                    training = lungs.LungTraining(order.dataset, order.run, trunk, group, start=order.start)
                    training.run()
                    if group.is_first:
                        training.export(order.weights, order.version, CALIBRATED_ON)
                case Stage.LESIONS:
                    recipe = read_recipe(LesionRecipe, order.recipe)
                    recipe = replace(recipe, steps=order.steps or recipe.steps)
                    lesions.LesionTraining(order.dataset, order.run, recipe, group, order.start).run()
                    if group.is_first:
                        lesions.export(order.run, recipe, order.weights, order.version)
            # One process of several writes, so that no two write the same file.
            return order.weights if group.is_first else None
    except FileNotFoundError as error:
        hint = f"Prepare one first:  lobewise prepare {order.stage} COHORT {order.dataset}"
        raise fail(Exit.USAGE, f"{order.dataset} holds no prepared volumes.", hint) from error
    except (RecipeError, WeightsError, ValueError) as error:
        raise fail(Exit.USAGE, str(error)) from error
