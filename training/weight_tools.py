"""Blends two sets of weights of one network: `python -m training.weight_tools A B OUT --version X`.

Weights that were trained on from others lie in one valley with them; between the two the network often does better on
what neither was trained on than at either end (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.networks.weights import ModelInfo, Weights, WeightsError, load_weights, save_weights


def blend(first: Weights, second: Weights, share: float, path: Path, version: str) -> ModelInfo:
    """Write (1 - share) x `first` + share x `second`, with the recipe of `second` and what it was blended with.

    Raises:
        WeightsError: they are not weights of the same network.
    """
    if first.config != second.config or first.tensors.keys() != second.tensors.keys():
        raise WeightsError("only weights of networks that are built alike can be blended")
    # Linear in the weights: both ends lie in one valley of the loss, as one was trained on from the other.
    tensors = {name: first.tensors[name].lerp(value, share) for name, value in second.tensors.items()}
    blended = {"version": first.info.version, "sha256": first.info.sha256, "share": round(1 - share, 4)}
    return save_weights(
        path,
        version=version,
        config=dict(second.config),
        recipe={**second.recipe, "blended_with": blended},
        tensors=tensors,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="weights file")
    parser.add_argument("second", type=Path, help="one of the same network, trained on from the first")
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--version", required=True)
    options = parser.parse_args(arguments)
    first, second = (load_weights(path.stem, path.parent) for path in (options.first, options.second))
    info = blend(first, second, options.share, options.out, options.version)
    sys.stdout.write(f"{info.name} {info.version} {info.sha256}\n")


if __name__ == "__main__":
    main()
