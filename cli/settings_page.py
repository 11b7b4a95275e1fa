"""docs/configuration.md, written from the settings themselves: `python -m cli.settings_page > FILE`."""

import sys
from typing import Final

from pydantic_settings import BaseSettings

from jobs.settings import AccessSettings, ApiSettings, JobsSettings, variables

HEAD: Final = """\
# Settings

Every process reads its settings from the environment. This page is generated from the code:
`python -m cli.settings_page > docs/configuration.md`.

A wrong value stops the start with a sentence that says what to set, and so does an entry of an allow-list that could
never match. A variable that looks like one of ours and is none is named in the log. `lobewise doctor` checks the
settings and what they lead to.

**Secrets** (marked \\*) may come from files instead: one file each, named as its variable, in the folder
`LOBEWISE_SECRETS_DIR` (by default `/run/secrets`, where Docker and Kubernetes put them). The environment goes first.
S3's credentials come from where the AWS tools find them: `AWS_*` variables, a web identity, a container's role, the
instance.
"""
SECTIONS: Final[tuple[tuple[str, type[BaseSettings]], ...]] = (
    ("Gateway, worker and sender", JobsSettings),
    ("Gateway", ApiSettings),
    ("Access to the gateway", AccessSettings),
)
FOOT: Final = """
## Others

| variable | default | |
|---|---|---|
| `LOBEWISE_SERVICE` | | address of the service for `lobewise submit` |
| `LOBEWISE_API_KEY` | | key or token that `lobewise submit` and the Python client send ([access.md](access.md)) |
| `LOBEWISE_SECRETS_DIR` | /run/secrets | folder of secrets |
| `AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ALLOW_HTTP`, `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` | AWS | where the bucket is |
| `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` | | proxies (`http://`, `https://`, `socks5://`, `socks5h://`; SOCKS needs \
`pip install 'httpx[socks]'`) for `lobewise submit`, for scans that workers fetch, callbacks and the bucket. \
127.0.0.0/8, ::1 and localhost never go by one |
| `NO_PROXY` | | what goes straight, separated by commas: `*`, hosts with all below them, addresses and networks \
(`::1`, `[::1]`, `10.0.0.0/8`), each with a port if only that is meant |
| `TORCH_HOME` | ~/.cache/torch | where lungmask's weights are kept |

## Traces

OpenTelemetry's own variables; [operations.md](operations.md#traces) tells about traces. They need the extra `tracing`.

| variable | default | |
|---|---|---|
| `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | | a collector that takes OTLP over HTTP \
(`http://collector:4318`; the second is a whole address, `/v1/traces` included); without one nothing is sent |
| `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_EXPORTER_OTLP_CERTIFICATE`, `OTEL_EXPORTER_OTLP_TIMEOUT` | | what it wants to \
see, whom to trust, seconds until it has not answered |
| `OTEL_SERVICE_NAME` | lobewise-gateway, -worker, -sender | what the process is called |
| `OTEL_RESOURCE_ATTRIBUTES` | | more about the process: `deployment.environment.name=test` |
| `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | parentbased_always_on | which traces are kept: \
`parentbased_traceidratio` and `0.1` for a tenth |
| `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_BSP_MAX_QUEUE_SIZE` | 5000, 2048 | how often spans are sent (ms), \
how many wait at most |
| `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER` | false, otlp | `true`, `none`: off |
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [HEAD]
    for title, kind in SECTIONS:
        parts.append(f"\n## {title}\n\n| variable | default | |\n|---|---|---|\n")
        for variable in variables(kind):
            star = "\\*" if variable.is_secret else ""
            parts.append(f"| `{variable.name}`{star} | {variable.default} | {variable.description} |\n")
    return "".join((*parts, FOOT))


if __name__ == "__main__":
    sys.stdout.write(page())
