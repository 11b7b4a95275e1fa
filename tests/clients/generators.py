"""Which generators are tried, how each is run, and how its client is compiled and driven."""

from dataclasses import dataclass
from typing import Final

#: What each driver does, in the words of the matrix.
OPERATIONS: Final = {
    "form": "submit by form",
    "source": "submit by source",
    "part": "send a part",
    "upload": "submit an upload",
    "cancel": "cancel",
    "poll": "poll with ETag",
    "validate": "validate, inspection",
    "callback": "callback, redelivery",
    "report": "report",
    "mask": "mask",
    "range": "mask, by range",
    "list": "list with cursor",
    "batch": "batch",
    "problem": "problem, typed",
}

Command = tuple[str, ...]


@dataclass(frozen=True)
class Client:
    """A generator, and the program that drives what it makes.

    Commands run in the client's folder below `build/`, where `../openapi.json` is the document; `{drivers}` is the
    folder of the drivers and `{python}` the interpreter of `.venv-clients`.

    Attributes:
        package: whose version the matrix tells; of npm if it is in package.json, or else of PyPI.
        needs: programs beyond those of `.venv-clients` and npm.
        generate, build: each must exit with 0.
        drive: gets the path of the world as its last argument, and prints a JSON line for each operation.
        options: what differs from the generator's defaults, and why.
    """

    name: str
    package: str
    generate: tuple[Command, ...]
    build: tuple[Command, ...]
    drive: Command
    needs: tuple[str, ...] = ()
    options: str = ""


_JAR: Final = ("openapi-generator-cli", "generate", "-i", "../openapi.json", "-o", ".")
_CODE_ALONE: Final = ("--global-property", "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false")
_TSC: Final = (
    *("tsc", "--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--skipLibCheck"),
    *("--module", "esnext", "--moduleResolution", "bundler", "--types", "node", "--experimentalDecorators"),
)


def _typescript(
    name: str, package: str, driver: str, generate: Command, needs: Command = (), options: str = ""
) -> Client:
    bundle = (
        "esbuild",
        f"{{drivers}}/{driver}.ts",
        "--bundle",
        "--platform=node",
        "--format=esm",
        "--log-level=warning",
    )
    return Client(
        name,
        package,
        (generate,),
        ((*_TSC, f"{{drivers}}/{driver}.ts"), (*bundle, "--outfile=drive.mjs")),
        ("node", "drive.mjs"),
        needs,
        options or "`tsc --strict`",
    )


CLIENTS: Final = (
    Client(
        "openapi-generator python",
        "openapi-generator-cli",
        ((*_JAR, "-g", "python", "--package-name", "generated", *_CODE_ALONE),),
        (("{python}", "{drivers}/import_all.py", "generated"),),
        ("{python}", "{drivers}/python_openapi_generator.py"),
        ("java",),
    ),
    _typescript(
        "openapi-generator typescript-fetch",
        "openapi-generator-cli",
        "typescript_fetch",
        (*_JAR, "-g", "typescript-fetch", *_CODE_ALONE),
        ("java",),
    ),
)
