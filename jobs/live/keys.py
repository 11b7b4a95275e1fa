"""Where everything lies in the live view. All of it can be rebuilt from the blobs.

```
lobewise:epoch                          set once the view is whole; missing after a wipe
lobewise:job:{id}                       hash: state, status, attempt, cancel, since_ms, published_ms, retry_ms
lobewise:events:{id}                    stream of the states that the job had; gone some time after the last
lobewise:feed                           stream of the changes of all jobs: job, type, and the id of the one before
lobewise:feed                           channel, too: there is a new change
lobewise:changed                        channel: the id of a job, of whatever tenant, that has a new event
lobewise:lease:{id}                     "{attempt}:{token}" with a time to live
lobewise:purged:{id}                    nothing is shown of this job any more; with a time to live
lobewise:index:{status|*}:{priority|*}  ids, in order
lobewise:severity:{priority|*}          members of `pagination.severity_member`, in order
lobewise:delays                         ids by how long after the moment in it the job was created, ms
lobewise:references                     members of `pagination.reference_member`, in order
lobewise:workers                        ready workers by the time at which their announcement expires
lobewise:models:{worker}                the models it has loaded, JSON, with a time to live
lobewise:vitals:{worker}                its memory and GPU, JSON, with a time to live
lobewise:figures                        hash of counts since the server was last empty (`job_metrics`)
lobewise:callbacks                      ids of jobs, and `batch:{id}`, that have to tell their end, by when that is due
lobewise:batch:{id}                     set of its jobs that are not finished, where it wants to tell of its end
lobewise:deadlines                      ids of jobs that no worker has begun, by the time until which one may, ms
lobewise:recent                         list: how long workers had the last jobs that they ended, ms
lobewise:lists                          lists of messages of tenants but `default`, by when one was last put in
lobewise:stored-bytes                   hash: bytes of each tenant's scans and results, where that is limited (`usage`)
lobewise:quota:{quota}/{owner}          requests, or bytes, of a window, with a time to live (`usage`)
lobewise:slots:{tenant}                 jobs just taken, where running ones are limited, by when that is forgotten
lobewise:callback-outcomes              hash: how many attempts ended in each way since the server was last empty
lobewise:reaper                         who looks for lost jobs now
lobewise:deletions                      something was deleted that the server's file still has
lobewise:audit:{day}                    hash: how far each chain of the audit trail had come
lobewise:at-work                        prefixes of the tenants that may have queued or running jobs
lobewise:rebuild:{mark}                 a rebuild is under way, and the server was not wiped since it began
```

Times are Redis' own, so that clocks of machines need not agree.

The tenant `default` has the keys as they stand here; those of another one begin with `lobewise:tenant:{tenant}:`.
What tells of workers, which all tenants share, and the totals for the metrics have one key for all.
"""

from dataclasses import dataclass
from typing import Final, Literal

from jobs.access.caller import DEFAULT_TENANT

# Some keys keep names that the code gave up: old and new processes share one Redis during an upgrade.
PREFIX: Final = "lobewise:"

# One for all tenants.
CHANGED: Final = PREFIX + "changed"
WORKERS: Final = PREFIX + "workers"
METRICS: Final = PREFIX + "figures"
RECENT: Final = PREFIX + "recent"
CALLBACK_OUTCOMES: Final = PREFIX + "callback-outcomes"
DELETIONS: Final = PREFIX + "deletions"
LEADER: Final = PREFIX + "reaper"
AT_WORK: Final = PREFIX + "at-work"
#: The channels of all feeds but that of the tenant `default`.
FEED_PATTERN: Final = PREFIX + "tenant:*:feed"
LISTS: Final = PREFIX + "lists"
STORED: Final = PREFIX + "stored-bytes"

#: Token of a lease that a rebuild grants, in place of the worker's own that was wiped.
REBUILT: Final = "rebuilt"

Kind = Literal["job", "events", "lease", "purged", "index", "severity", "rebuild", "batch"]


@dataclass(frozen=True)
class Keys:
    """The keys of one tenant.

    Attributes:
        prefix: of all of them.
    """

    prefix: str = PREFIX

    @classmethod
    def of(cls, tenant: str) -> "Keys":
        return cls(PREFIX if tenant == DEFAULT_TENANT else f"{PREFIX}tenant:{tenant}:")

    def key(self, kind: Kind, *parts: str) -> str:
        """The key of one job, list, batch or rebuild."""
        return self.prefix + ":".join((kind, *parts))

    @property
    def epoch(self) -> str:
        return self.prefix + "epoch"

    @property
    def feed(self) -> str:
        return self.prefix + "feed"

    @property
    def callbacks(self) -> str:
        return self.prefix + "callbacks"

    @property
    def deadlines(self) -> str:
        return self.prefix + "deadlines"

    # These two have every job that a list may name (`references` those that have a reference). Versions before them
    # fill the other lists alone: the view is whole for them only while `delays` is as long as the list of all jobs.

    @property
    def delays(self) -> str:
        return self.prefix + "delays"

    @property
    def references(self) -> str:
        return self.prefix + "references"


def worker_key(kind: Literal["models", "vitals"], worker: str) -> str:
    """What a worker tells of itself."""
    return f"{PREFIX}{kind}:{worker}"
