"""Errors of an evaluation, each with a text for people.

EvaluationError                 truth and prediction cannot be compared; its text says what to do
├── TableError                  a CSV file cannot be read as a table
│   ├── MissingColumnsError     a column that is needed is not there
│   ├── BadValueError           a cell holds a value that its column does not allow
│   └── DuplicateCaseError      two rows have the same case name
├── UnmatchedCasesError         a case is in one file alone, or its group differs
├── ImageError                  a CT or mask of the manifest is missing, unreadable or no mask
│   └── MismatchedGridError     a mask does not lie on the grid of its CT
└── OtherCohortError            a folder holds cases that were simulated otherwise
"""


class EvaluationError(Exception):
    """Its text is for people: what is wrong where, and what to do."""


class TableError(EvaluationError):
    pass


class MissingColumnsError(TableError):
    pass


class BadValueError(TableError):
    pass


class DuplicateCaseError(TableError):
    pass


class UnmatchedCasesError(EvaluationError):
    pass


class ImageError(EvaluationError):
    pass


class MismatchedGridError(ImageError):
    pass


class OtherCohortError(EvaluationError):
    pass
