"""What can be wrong with what is to be evaluated.

EvaluationError                 truth and prediction cannot be compared; its text says what to do
├── TableError                  a CSV file cannot be read as a table
│   ├── MissingColumnsError     a column that is needed is not there
│   ├── BadValueError           a cell holds what its column cannot mean
│   └── DuplicateCaseError      two rows claim to be the same case
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
