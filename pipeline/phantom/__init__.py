"""A procedural thorax: CT, lobes, lesions, landmarks and exact scores, from a seed.

    phantom = make_phantom(PhantomRecipe(seed=7, spacing_mm=(3.0, 1.0, 1.0), percent_opacity=20))

A patient is drawn (`patient`), described by signed distances in patient space (`thorax`, `vessels`, `lesions`),
painted in Hounsfield units (`generate`) and scanned (`acquisition`). Since shapes live in millimetres and not in
voxels, any spacing and any direction of the grid shows the same patient. It serves tests, the demo, training and
evaluation; figures measured on it are synthetic and labelled so.
"""

from pipeline.phantom.generate import make_phantom
from pipeline.phantom.recipe import Fit, Kernel, Phantom, PhantomRecipe, Tissue

__all__ = ["Fit", "Kernel", "Phantom", "PhantomRecipe", "Tissue", "make_phantom"]
