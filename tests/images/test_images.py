"""The Dockerfiles keep our rules, and the looks into built images see faults. What builds them is `make images`."""

import re
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.images import look, outside

ROOT = Path(__file__).parents[2]

PARTS = ("api", "worker")
LABEL = re.compile(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"')


class Step(NamedTuple):
    """One instruction, its lines joined."""

    word: str
    rest: str


def steps(part: str) -> list[Step]:
    text = re.sub(r"^#.*\n", "", (ROOT / f"Dockerfile.{part}").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def stages(part: str) -> list[list[Step]]:
    found: list[list[Step]] = []
    for step in steps(part):
        if step.word == "FROM":
            found.append([])
        if found:
            found[-1].append(step)
    return found


def last(part: str, word: str) -> str:
    """What an instruction of the stage that ships says."""
    return [step.rest for step in stages(part)[-1] if step.word == word][-1]


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_hadolint_is_content(part: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / f"Dockerfile.{part}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned_and_the_same_throughout(part: str) -> None:
    (default,) = (step.rest for step in steps(part)[:1] if step.word == "ARG")
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", default)
    assert default == steps("api")[0].rest
    named = {"${PYTHON_IMAGE}"}
    for step in steps(part):
        if step.word == "FROM":
            source, _, name = step.rest.partition(" AS ")
            assert source in named
            named.add(name)


@pytest.mark.parametrize(
    ("release", "base", "is_built"),
    [
        ("", "python:3.11", True),
        ("1", "python:3.11", False),
        ("1", f"python:3.11@sha256:{'0' * 64}", True),
        ("1", f"python:3.11@sha256:{'0' * 63}", False),
        ("", f"python:3.11@sha256:{'0' * 64}", True),
    ],
)
def test_a_release_is_built_on_no_base_but_one_by_digest(part: str, release: str, base: str, is_built: bool) -> None:
    """Before anything else is done; run as the build runs it."""
    check = next(step.rest for step in stages(part)[0] if step.word == "RUN")
    environment = {"RELEASE": release, "PYTHON_IMAGE": base}
    done = subprocess.run(["/bin/sh", "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is is_built
    assert is_built or "A release needs its base by digest" in done.stderr


def test_what_builds_is_not_what_ships(part: str) -> None:
    *building, shipped = stages(part)
    assert len(building) == (3 if part == "api" else 2)  # one for the pages
    assert [step.rest.split()[0] for step in shipped if step.word == "COPY"] == [
        "--from=dependencies",
        "--from=product",
    ]
    assert not any("pip" in step.rest for step in shipped)
    assert any("a-s" in step.rest for step in shipped if step.word == "RUN")


def test_dependencies_come_before_the_sources(part: str) -> None:
    dependencies, product = stages(part)[0], stages(part)[-2]
    copied = " ".join(step.rest for step in dependencies if step.word == "COPY")
    assert copied == "pyproject.toml constraints.txt README.md LICENSE ./"
    assert "constraints.txt" in next(step.rest for step in dependencies if "install" in step.rest)
    assert all("--no-deps" in step.rest for step in product if step.word == "RUN")


def test_the_gateway_gets_its_rooms_alone() -> None:
    copied = {path for step in stages("api")[-2] if step.word == "COPY" for path in step.rest.split()}
    assert copied == {"api", "jobs", "--from=pages", "/build/api/web", "api/web"}


def test_it_runs_as_kubernetes_runs_it(part: str) -> None:
    for document in yaml.safe_load_all((ROOT / "k8s" / "base" / f"{part}.yaml").read_text()):
        if document["kind"] == "Deployment":
            pod = document["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert last(part, "USER") == f"{context['runAsUser']}:{context['runAsGroup']}" == look.FAMILY
    home = last(part, "WORKDIR")
    assert home in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert f"LOBEWISE_DATA_DIR={home}" in last(part, "ENV")


def test_it_starts_and_is_looked_after_without_a_shell(part: str) -> None:
    health = last(part, "HEALTHCHECK")
    for line in (last(part, "CMD"), health[health.index("CMD ") + 4 :]):
        python, option, name = yaml.safe_load(line)
        assert (python, option) == ("python", "-m")
        assert find_spec(name) is not None


def test_labels_tell_what_it_is(part: str) -> None:
    labels = dict(LABEL.findall(last(part, "LABEL")))
    assert set(look.LABELS) <= labels.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["version"] == project["version"] == version("lobewise")
    assert labels["licenses"] == project["license"]


def test_no_secret_goes_into_a_layer(part: str) -> None:
    text = (ROOT / f"Dockerfile.{part}").read_text()
    assert "<<" not in text
    assert not any(step.word == "ADD" for step in steps(part))
    for step in steps(part):
        if step.word in ("ARG", "ENV"):
            assert not look.SECRET.search(step.rest)
        if step.word == "RUN" and "pip --python" in step.rest:
            assert step.rest.startswith("--mount=type=secret,id=pip,target=/etc/pip.conf ")


def test_the_context_is_what_is_named() -> None:
    first, *named = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    assert {"!api", "!jobs", "!worker", "!pipeline", "!cli", "!pyproject.toml", "!constraints.txt"} <= set(named)
    assert not {"!training", "!evaluation", "!tests"} & set(named)


# What looks into a built image.


def described(**changes: Any) -> dict[str, Any]:
    labels = {f"org.opencontainers.image.{name}": "x" for name in look.LABELS}
    healthy = {"Test": ["CMD", "python", "-m", "x"]}
    return {"User": "10001:10001", "Labels": labels, "Healthcheck": healthy, "Cmd": ["python", "-m", "x"]} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"User": ""}, "runs as ''"),
        ({"User": "root"}, "runs as 'root'"),
        ({"Labels": None}, "label title is missing"),
        ({"Healthcheck": None}, "health check"),
        ({"Healthcheck": {"Test": ["CMD-SHELL", "true"]}}, "health check"),
        ({"Cmd": ["sh", "-c", "python"]}, "starts"),
    ],
)
def test_faults_of_a_configuration_are_seen(changes: dict[str, Any], words: str) -> None:
    assert list(look.configuration(described())) == []
    assert any(words in fault for fault in look.configuration(described(**changes)))


@pytest.mark.parametrize(
    "said", ["RUN pip install --index-url https://me:word@packages.example/all", "ENV API_TOKEN=1", "whsec_AAAA"]
)
def test_secrets_in_a_history_are_seen(said: str) -> None:
    assert list(look.history("RUN pip install .", {})) == []
    assert list(look.history(said, {}))


def test_settings_of_the_builder_in_a_history_are_seen() -> None:
    assert list(look.history("RUN true", {"index-url": "https://packages.example/all"})) == []
    assert list(look.history("|1 X=https://packages.example/all", {"index-url": "https://packages.example/all"}))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    packages = tmp_path / "opt/lobewise/lib/python3.11/site-packages"
    for name, number in (("Celery", look_up("celery")), ("lobewise", "0.1.0")):
        folder = packages / f"{name}-{number}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    return tmp_path


def look_up(name: str) -> str:
    return dict(look.pins(ROOT / "constraints.txt"))[name]


def test_setuid_programs_and_open_files_are_seen(tree: Path) -> None:
    program = tree / "bin" / "su"
    program.parent.mkdir()
    program.touch(0o755)
    program.chmod(0o755 | stat.S_ISUID)
    assert "/bin/su makes its caller somebody else" in look.files(tree, tree, [])
    program.chmod(0o757)
    assert "/bin/su may be changed by what runs" in look.files(tree, tree, [])


def test_what_a_build_leaves_is_seen(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("base")
    (tree / "var" / "cache" / "pip").mkdir(parents=True)
    (tree / "opt" / "wheels").mkdir()
    found = list(look.files(tree, base, [Path("/opt/wheels")]))
    assert "/var/cache/pip was left behind" in found
    assert "/opt/wheels, of the machine that built it, is in it" in found


def test_distributions_that_do_not_belong_are_seen(tree: Path) -> None:
    assert list(look.distributions("api", tree)) == []
    assert "are not in it" in "".join(look.distributions("worker", tree))
    folder = tree / "opt/lobewise/lib/python3.11/site-packages"
    (folder / "torch").mkdir()
    (folder / "pip-99.dist-info").mkdir()
    (folder / "pip-99.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pip\nVersion: 99\n")
    found = list(look.distributions("api", tree))
    assert "torch is in it" in found
    assert "pip is in it, and serves nobody" in found
    assert "pip 99 is in it; constraints.txt has None" in found


def test_sizes_are_of_files_each_once(tree: Path) -> None:
    before = look.size_mb(tree)
    (tree / "large").write_bytes(bytes(3_000_000))
    (tree / "also").hardlink_to(tree / "large")
    (tree / "link").symlink_to(tree / "large")
    assert look.size_mb(tree) - before == pytest.approx(3.0)
    assert list(look.size("api", 270.0, 100.0))
    assert not list(look.size("api", 249.0, 100.0))
    assert not list(look.size("worker", 3000.0, 100.0))


# What is lent to a build.


def test_a_build_finds_packages_as_pip_outside_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index" / "all").mkdir(parents=True)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        f"[global]\nextra-index-url = file://{tmp_path}/index/all\n  https://packages.example/all\ntimeout = 7\n"
        f"cache-dir = {tmp_path}/cache\n[install]\nno-compile = true\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} {tmp_path}/absent")
    monkeypatch.setenv("PIP_TIMEOUT", "8")
    found = outside.settings(Path(sys.executable).with_name("pip"))
    assert found["timeout"] == "8"
    assert "cache-dir" not in found
    assert "no-compile" not in found
    assert {tmp_path / "index", wheels} <= set(outside.folders(found))
    assert tmp_path / "absent" not in outside.folders(found)
    text = outside.as_file(found)
    assert f"extra-index-url = file://{tmp_path}/index/all https://packages.example/all\n" in text
    assert list(outside.volumes([wheels])) == ["--volume", f"{wheels}:{wheels}:ro"]
