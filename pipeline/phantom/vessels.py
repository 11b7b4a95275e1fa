"""Pulmonary vessels: trees that grow from each hilum to the periphery, thinner at each branching."""

from typing import Final

import numpy as np
from numpy.random import Generator

from pipeline.phantom.fields import Tube
from pipeline.phantom.patient import Patient

RIGHT_WAYS: Final = (
    (-1, -0.3, 0.6),
    (-1, -0.8, -0.2),
    (-0.8, 0.6, -0.7),
    (-0.6, -0.2, -1),
    (-0.5, 0.9, 0.3),
    (-0.7, -0.6, 1),
)
LEFT_WAYS: Final = ((1, -0.3, 0.7), (0.9, -0.9, 0), (0.8, 0.6, -0.7), (0.6, -0.1, -1), (0.4, 0.9, 0.4), (0.5, -0.6, 1))
GENERATIONS: Final = 9
#: Radius below which a vessel no longer branches.
THINNEST_MM: Final = 0.45


def pulmonary_vessels(patient: Patient, rng: Generator) -> list[Tube]:
    """All segments of both lungs; those that leave the lung are the painter's to clip."""
    roots = [(patient.right_hilum, way) for way in RIGHT_WAYS] + [(patient.left_hilum, way) for way in LEFT_WAYS]
    tubes: list[Tube] = []
    for hilum, first_way in roots:
        first_radius = rng.uniform(3.8, 5.5) * patient.scale
        buds = [(np.array(hilum), np.array(first_way, dtype=float), first_radius, rng.uniform(23, 30), 0)]
        while buds:
            begin, way, radius, length, generation = buds.pop()
            way = way / np.linalg.norm(way)
            end = begin + way * length * rng.uniform(0.7, 1.3)
            tubes.append(Tube(tuple(begin.tolist()), tuple(end.tolist()), radius, radius * 0.82))
            if generation == GENERATIONS or radius < THINNEST_MM:
                continue
            for _ in range(2 if generation < 2 else int(rng.integers(1, 4))):
                turned = way + rng.normal(0, 0.55, 3)
                thinner, shorter = radius * rng.uniform(0.6, 0.85), length * rng.uniform(0.7, 0.95)
                buds.append((end, turned, thinner, shorter, generation + 1))
    return tubes
