"""Where everything lies in the live view. All of it can be rebuilt from the blobs.

```
lobewise:epoch                          set once the view is whole; missing after a wipe
lobewise:job:{id}                       hash: state, status, attempt, cancel, since_ms, published_ms, retry_ms
lobewise:events:{id}                    what the job was, in order (`events`)
lobewise:lease:{id}                     "{attempt}:{token}" with a time to live
lobewise:purged:{id}                    nothing is shown of this job any more; with a time to live
lobewise:index:{status|*}:{priority|*}  ids, in order
lobewise:severity:{priority|*}          members of `pagination.severity_member`, in order
lobewise:workers                        ready workers by the time at which their word expires
lobewise:models:{worker}                the models it has loaded, JSON, with a time to live
lobewise:callbacks                      jobs that have to tell how they ended, by when (`callback_schedule`)
lobewise:figures, lobewise:vitals:{worker}  what workers did, and how they are (`job_metrics`)
lobewise:reaper                         who looks for lost jobs now
lobewise:rebuild:{mark}                 a rebuild is under way, and the server was not wiped since it began
```

Times are Redis' own, so that clocks of machines need not agree. Some keys keep names that the code gave up: old and
new processes share one Redis during an upgrade.
"""

from typing import Final

PREFIX: Final = "lobewise:"
EPOCH: Final = PREFIX + "epoch"
WORKERS: Final = PREFIX + "workers"
LEADER: Final = PREFIX + "reaper"

#: Token of a lease that a rebuild grants, in place of the worker's own that was wiped.
REBUILT: Final = "rebuilt"


def job_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def lease_key(job_id: str) -> str:
    return f"{PREFIX}lease:{job_id}"


def tombstone_key(job_id: str) -> str:
    return f"{PREFIX}purged:{job_id}"


def models_key(worker: str) -> str:
    return f"{PREFIX}models:{worker}"


def worker_stats_key(worker: str) -> str:
    return f"{PREFIX}vitals:{worker}"


def index_key(status: str, priority: str) -> str:
    return f"{PREFIX}index:{status}:{priority}"


def severity_key(priority: str) -> str:
    return f"{PREFIX}severity:{priority}"


def rebuild_key(mark: str) -> str:
    return f"{PREFIX}rebuild:{mark}"
