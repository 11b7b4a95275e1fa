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
        drive: gets the path of the world as its last argument, and prints a JSON line for each operation; empty where
            nothing here can run it.
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
_JAVA_OPTIONS: Final = "library=native,openApiNullable=false,useJakartaEe=true,useSingleRequestParameter=true"
_JAVA_PACKAGES: Final = (
    "--invoker-package",
    "lobewise",
    "--api-package",
    "lobewise.api",
    "--model-package",
    "lobewise.model",
)
_GO_OPTIONS: Final = "withGoMod=false,enumClassPrefix=true"
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
    Client(
        "openapi-python-client",
        "openapi-python-client",
        (
            (
                "openapi-python-client",
                "generate",
                "--path",
                "../openapi.json",
                "--config",
                "{drivers}/openapi_python_client.yml",
            ),
            ("mv", "client/generated", "generated"),
        ),
        (("{python}", "{drivers}/import_all.py", "generated"),),
        ("{python}", "{drivers}/python_openapi_python_client.py"),
    ),
    _typescript(
        "hey-api",
        "@hey-api/openapi-ts",
        "hey_api",
        ("openapi-ts", "-i", "../openapi.json", "-o", "generated", "-c", "@hey-api/client-fetch"),
    ),
    _typescript(
        "openapi-typescript, openapi-fetch",
        "openapi-typescript",
        "openapi_fetch",
        ("openapi-typescript", "../openapi.json", "-o", "schema.ts", "--default-non-nullable=false"),
        options="`--default-non-nullable=false`, or else what has a default must be sent; `tsc --strict`",
    ),
    _typescript("orval", "orval", "orval", ("orval", "--config", "{drivers}/orval.config.ts")),
    _typescript(
        "ng-openapi-gen",
        "ng-openapi-gen",
        "ng_openapi_gen",
        ("ng-openapi-gen", "--input", "../openapi.json", "--output", "generated"),
        options="Angular's HttpClient on Node's fetch; `tsc --strict`",
    ),
    Client(
        "openapi-generator go",
        "openapi-generator-cli",
        (
            (*_JAR, "-g", "go", "--package-name", "lobewise", "--additional-properties", _GO_OPTIONS, *_CODE_ALONE),
            ("mkdir", "drive"),
            ("cp", "{drivers}/drive.go", "drive"),
            ("cp", "{drivers}/go.mod.txt", "go.mod"),
        ),
        (("go", "vet", "./..."), ("go", "build", "-o", "driver", "./drive")),
        ("./driver",),
        ("java",),
        "`enumClassPrefix`, or else constants of two enums have one name; `go vet`",
    ),
    Client(
        "openapi-generator java",
        "openapi-generator-cli",
        ((*_JAR, "-g", "java", "--additional-properties", _JAVA_OPTIONS, *_JAVA_PACKAGES, *_CODE_ALONE),),
        (
            (
                "sh",
                "-c",
                "javac -nowarn -proc:none -d . -cp {java} $(find src/main -name '*.java') {drivers}/Drive.java",
            ),
        ),
        ("java", "-cp", ".:{java}", "Drive"),
        ("java", "javac"),
        "`library=native`, `openApiNullable=false` and `useJakartaEe`, since Debian has what that needs; "
        "`useSingleRequestParameter`, so that parameters have names",
    ),
    Client(
        "openapi-generator csharp",
        "openapi-generator-cli",
        ((*_JAR, "-g", "csharp", "--additional-properties", "library=httpclient", *_CODE_ALONE),),
        (),
        (),
        ("java",),
        "`library=httpclient`; generated alone",
    ),
)
