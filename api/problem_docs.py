"""Shows the table of problem types: a page for each one, and all of them in `docs/problems.md`.

`python -m api.problem_docs > docs/problems.md` writes the latter anew.
"""

from html import escape
from typing import Final

from jobs.problems import PROBLEM_TYPES, ProblemType

PAGE_STYLE: Final = "body{font:1rem/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}"
_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p><code>{uri}</code> &middot; {where} &middot; {retryable}</p>
<h2>What it means</h2><p>{meaning}</p>
<h2>What to do</h2><p>{remedy}</p>
</html>
"""
_INTRODUCTION: Final = """# Problem types

A call that fails is answered with `application/problem+json` (RFC 9457):

```json
{
  "type": "/problems/wrong-state",
  "title": "The job's status does not allow this",
  "status": 409,
  "detail": "the job is running",
  "instance": "/v1/jobs/01935f3a-7c1e-7b6a-9d53-2f1c7e0a4b11/report",
  "retryable": false,
  "evidence": {"status": "running"},
  "errors": []
}
```

Decide by `type`, which never changes, not by `title` or `detail`. Where `retryable` is true the same call may succeed
later, and `Retry-After` says when. `evidence` holds what was seen, as data. `errors` names each parameter that was
refused by a JSON pointer into the request. Every `type` is also the address of a page on the running service.

A scan that cannot be scored is no error of a call: `GET /v1/jobs/{job_id}` answers 200, the job's `status` is `failed`,
and its `error` holds the problem without `status` and `instance`.
"""


def html_page(problem: ProblemType) -> str:
    return _PAGE.format(
        style=PAGE_STYLE,
        title=escape(problem.title),
        uri=escape(problem.uri),
        where=_where(problem),
        retryable="may succeed later" if problem.retryable else "will not succeed unchanged",
        meaning=escape(problem.meaning),
        remedy=escape(problem.remedy),
    )


def markdown() -> str:
    """All of `docs/problems.md`."""
    parts = [_INTRODUCTION]
    for answers_calls, heading in ((True, "## Answers to calls"), (False, "## Why a job failed")):
        parts.append(f"{heading}\n")
        parts.extend(
            f"### `{problem.slug}`\n\n**{problem.title}.** {_where(problem)}{', retryable' * problem.retryable}.\n\n"
            f"{problem.meaning} {problem.remedy}\n"
            for problem in PROBLEM_TYPES
            if (problem.status is not None) is answers_calls
        )
    return "\n".join(parts)


def _where(problem: ProblemType) -> str:
    return f"HTTP {problem.status}" if problem.status else "Inside a failed job"


if __name__ == "__main__":
    print(markdown(), end="")
