"""What the scanner adds: where it looks, how it blurs, how it rustles."""

from typing import Final

import numpy as np
from jaxtyping import Int16
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from pipeline.geometry import Grid
from pipeline.phantom.fields import Field
from pipeline.phantom.patient import Patient
from pipeline.phantom.recipe import Fit, Kernel, PhantomRecipe

#: How far noise is correlated in the image, by reconstruction kernel.
NOISE_WIDTH_MM: Final[dict[Kernel, float]] = {"soft": 1.1, "standard": 0.7, "sharp": 0.35}
KERNELS: Final[tuple[Kernel, ...]] = ("soft", "standard", "sharp")


def scan_grid(recipe: PhantomRecipe, patient: Patient) -> Grid:
    """The grid that covers the field of view with the wanted spacing and direction."""
    lower_z, upper_z = field_of_view_z(recipe.fit, patient)
    half = patient.fov_half
    lower, upper = np.array([-half, -0.8 * half, lower_z]), np.array([half, 0.85 * half, upper_z])
    direction, spacing_xyz = np.array(recipe.direction), np.array(recipe.spacing_mm[::-1])
    extent = np.abs(direction.T) @ (upper - lower)
    count = np.maximum(np.round(extent / spacing_xyz).astype(int), 2)
    x, y, z = (lower + upper) / 2 - direction @ (spacing_xyz * (count - 1) / 2)
    shape = int(count[2]), int(count[1]), int(count[0])
    return Grid(shape, recipe.spacing_mm, (float(x), float(y), float(z)), recipe.direction)


def field_of_view_z(fit: Fit, patient: Patient) -> tuple[float, float]:
    """Lower and upper end of the scan (LPS z, mm)."""
    lower, upper = patient.fov_z
    carina, bottom = patient.carina[2], min(patient.dome_z) - 115 * patient.scale
    return {
        "chest": (lower, upper),
        "upper-chest": (carina + 25, upper + 90),
        "lower-chest": (lower - 60, carina - 45),
        "abdomen": (bottom - 250, bottom),
        "head": (patient.apex_z + 110, patient.apex_z + 300),
    }[fit]


def reconstruct(hu: Field, recipe: PhantomRecipe, rng: Generator) -> Int16[np.ndarray, "z y x"]:
    """Add the kernel's noise and store whole Hounsfield units."""
    drawn_kernel = KERNELS[int(rng.integers(len(KERNELS)))]
    drawn_hu = rng.uniform(6, 32)
    kernel = recipe.kernel or drawn_kernel
    noise_hu = drawn_hu if recipe.noise_hu is None else recipe.noise_hu
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    # Slices are reconstructed one by one: noise is correlated within them, hardly between them.
    widths = [NOISE_WIDTH_MM[kernel] * (0.5 if axis == 0 else 1.0) / s for axis, s in enumerate(recipe.spacing_mm)]
    noise = gaussian_filter(noise, widths, truncate=3)
    noise *= np.float32(noise_hu / max(float(noise.std()), 1e-6))
    return np.asarray(np.clip(np.round(hu + noise), -1024, 3071), dtype=np.int16)
