"""CSV files of scores: what is read, and what is refused with which words."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.errors import (
    BadValueError,
    DuplicateCaseError,
    EvaluationError,
    MissingColumnsError,
    TableError,
    UnmatchedCasesError,
)
from evaluation.scores import Metric, match, read_pairs, read_scores, write_scores
from tests.support.evaluation_cohorts import case, noisy_cohort, write_pairs

PRINTABLE = st.characters(exclude_categories=["C", "Z"])
HEADER = "case,percent_opacity,percent_high_opacity,lung_severity_score,lung_high_opacity_score"


def written(folder: Path, text: str) -> Path:
    path = folder / "scores.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    cohort = noisy_cohort()
    paired = read_pairs(*write_pairs(tmp_path, cohort))
    assert paired.cases == cohort.cases
    assert paired.groups == cohort.groups
    assert paired.have_lobes
    for metric in Metric:
        for read, known in zip(paired.values(metric), cohort.values(metric), strict=True):
            assert read == pytest.approx(known, abs=1e-6)


@given(st.lists(st.lists(st.floats(0, 100), min_size=5, max_size=5), min_size=1, max_size=6), st.text(PRINTABLE))
def test_any_scores_and_names_are_read_back(percents: list[list[float]], name: str) -> None:
    rows = [case(f"{number} {name}".strip(), each) for number, each in enumerate(percents)]
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder, "scores.csv"), rows)
        read, unused = read_scores(Path(folder, "scores.csv"))
    assert [scores.case for scores in read] == [scores.case for scores in rows]
    assert [scores.of(Metric.PO) for scores in read] == pytest.approx([s.of(Metric.PO) for s in rows], abs=1e-6)
    assert [scores.lobes[4].severity_score for scores in read] == [scores.lobes[4].severity_score for scores in rows]
    assert unused == ()


def test_the_order_of_rows_and_columns_is_free(tmp_path: Path) -> None:
    truth = written(tmp_path, f"{HEADER}\na,10,1,5,1\nb,20,2,6,2\n")
    columns = "lung_severity_score,case,comment,percent_high_opacity,percent_opacity,lung_high_opacity_score"
    predicted = tmp_path / "predicted.csv"
    predicted.write_bytes(f'\ufeff{columns}\r\n7,b,"x, y",2,21,2\r\n5,a,z,1,11,1\r\n\r\n'.encode())
    paired = read_pairs(truth, predicted)
    assert paired.values(Metric.PO)[1].tolist() == [11, 21]
    assert paired.unused_columns == ("comment",)
    assert paired.groups == (None, None)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("case,percent_opacity\na,1\n", MissingColumnsError, "percent_high_opacity, lung_severity_score"),
        (f"{HEADER}\n", TableError, "no rows"),
        ("", TableError, "no rows"),
        (HEADER.replace(",", ";") + "\na;1;0;1;0\n", TableError, "semicolons"),
        (f"{HEADER},case\na,1,0,1,0,a\n", TableError, "stand twice"),
        (f"{HEADER}\na,1,0,1\n", TableError, "line 2: 4 cells for 5 columns"),
        (
            f"{HEADER}\na,1,0,1,0\na,2,0,1,0\n",
            DuplicateCaseError,
            "line 3: case 'a' stands already in scores.csv, line 2",
        ),
        (f"{HEADER}\na,nan,0,1,0\n", BadValueError, "line 2: percent_opacity is 'nan'"),
        (f"{HEADER}\na,inf,0,1,0\n", BadValueError, "percent_opacity is 'inf'"),
        (f"{HEADER}\na,,0,1,0\n", BadValueError, "percent_opacity is empty. Fill it in"),
        (f"{HEADER}\n,1,0,1,0\n", BadValueError, "case is empty"),
        (f"{HEADER}\na,101,0,1,0\n", BadValueError, "less than or equal to 100"),
        (f"{HEADER}\na,-1,0,1,0\n", BadValueError, "greater than or equal to 0"),
        (f'{HEADER}\na,"1,5",0,1,0\n', BadValueError, "percent_opacity is '1,5'"),
        (f"{HEADER}\na,1,0,1.5,0\n", BadValueError, "lung_severity_score is '1.5'"),
        (f"{HEADER}\na,1,0,21,0\n", BadValueError, "less than or equal to 20"),
        (f"{HEADER}\na,1,2,3,0\n", BadValueError, "percent_high_opacity exceeds percent_opacity"),
        (f"{HEADER}\na,3,2,1,2\n", BadValueError, "lung_high_opacity_score exceeds"),
        (f"{HEADER},group\na,1,0,1,0,\n", BadValueError, "group is empty"),
        (f"{HEADER},left_upper_percent_opacity\na,1,0,1,0,1\n", MissingColumnsError, "all 20 columns or none"),
    ],
)
def test_a_bad_table_is_refused_with_what_to_do(
    text: str, error: type[EvaluationError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        read_scores(written(tmp_path, text))
    assert said in str(caught.value)
    assert str(caught.value).startswith("scores.csv")


def test_a_file_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path / "scores.csv", tmp_path / "none.csv", tmp_path):
        with pytest.raises(TableError):
            read_scores(path)


def test_cases_of_one_side_alone_are_named() -> None:
    with pytest.raises(UnmatchedCasesError, match="'b' is in the truth alone; Case 'c' is in the prediction alone"):
        match([case("a", [1.0] * 5), case("b", [1.0] * 5)], [case("c", [1.0] * 5), case("a", [1.0] * 5)])
    many = [case(str(number), [1.0] * 5) for number in range(9)]
    with pytest.raises(UnmatchedCasesError, match="and 4 more are in the truth alone"):
        match(many, [])


def test_a_case_has_one_group() -> None:
    with pytest.raises(UnmatchedCasesError, match="'control' in the truth and 'covid' in the prediction"):
        match([case("a", [1.0] * 5, "control")], [case("a", [1.0] * 5, "covid")])
    assert match([case("a", [1.0] * 5)], [case("a", [1.0] * 5, "covid")]).groups == ("covid",)
