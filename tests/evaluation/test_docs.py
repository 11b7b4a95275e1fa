"""The page for users names what the code reads."""

from pathlib import Path

from evaluation import masks, scores
from evaluation.statistics import RESAMPLES
from pipeline.anatomy import Lobe

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_every_column_is_documented() -> None:
    for column in (*scores.NEEDED_COLUMNS, *masks.NEEDED_COLUMNS, *masks.OPTIONAL_COLUMNS):
        assert f"`{column}`" in PAGE, column
    for lobe in Lobe:
        assert f"`{lobe.slug}`" in PAGE
        assert f"{lobe.value} {lobe.slug.replace('_', ' ')}" in PAGE
    for name in scores.LOBE_FIELDS:
        assert f"`LOBE_{name}`" in PAGE


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"anew {RESAMPLES} times" in PAGE
    assert f"({masks.GRID_TOLERANCE_MM} mm at the corners" in PAGE
