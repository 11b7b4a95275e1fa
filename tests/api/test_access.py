"""Keys, tokens and roles, at a real gateway; the issuer is a small server with real signatures."""

import asyncio
import base64
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from joserfc import jwt
from joserfc.jwk import ECKey, Key, KeySet, OctKey, OKPKey, RSAKey
from pydantic import SecretStr

from api.access import ROLES
from api.app import create_app, run
from jobs.access import tokens
from jobs.access.caller import Role
from jobs.access.doors import Doors
from jobs.access.keys import REFRESH_SECONDS, KeyRing, Keys
from jobs.bootstrap import connect
from jobs.errors import ForbiddenError, SettingsError, UnauthenticatedError
from jobs.settings import AccessSettings, ApiSettings, JobsSettings, read_settings
from tests.api.conftest import DOCUMENT, Service, nifti, require_problem, running_service

AUDIENCE = "lobewise"
FIRST_KEY = "f1f2" * 16
METRICS_KEY = "c3c4" * 16
ALL = frozenset(Role)
EVERYWHERE = "0.0.0.0"  # noqa: S104 (it is refused, or nothing is bound)


@dataclass
class Issuer:
    """Publishes what `keys` holds; `asked` counts how often."""

    address: str = ""
    keys: list[Key] = field(default_factory=list)
    others: list[dict[str, object]] = field(default_factory=list)
    asked: int = 0
    is_down: bool = False

    def token(self, key: Key | None = None, header: dict[str, object] | None = None, **claims: object) -> str:
        key = key or self.keys[0]
        header = {
            "alg": {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[key.key_type],
            "kid": key.kid,
            **(header or {}),
        }
        now = int(time.time())
        given = {"iss": self.address, "aud": AUDIENCE, "sub": "someone@clinic", "iat": now, "exp": now + 300}
        given |= {"roles": ["read", "submit"], **claims}
        wanted = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(header, wanted, key, algorithms=[str(header["alg"])])


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    state = Issuer(keys=[RSAKey.generate_key(2048, {"kid": "first"})])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document: dict[str, object] = {"issuer": state.address, "jwks_uri": f"{state.address}/jwks"}
            if self.path == "/jwks":
                state.asked += 1
                published = KeySet(list(state.keys)).as_dict(private=False)["keys"]
                document = {"keys": [*state.others, *published]}
            body = json.dumps(document).encode()
            self.send_response(503 if state.is_down else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Service]:
    """A service with everything: keys, a first key, an issuer."""
    environment = {
        "LOBEWISE_FIRST_KEY": FIRST_KEY,
        "LOBEWISE_METRICS_KEY": METRICS_KEY,
        "LOBEWISE_OIDC_ISSUER": issuer.address,
        "LOBEWISE_OIDC_AUDIENCE": AUDIENCE,
    }
    with ExitStack() as stack:
        # Its settings are its own: read once, when it starts.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            service = stack.enter_context(running_service(tmp_path_factory.mktemp("guarded")))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(tokens, "FLOOR_SECONDS", 0.5)
        yield service


def keys_of(service: Service) -> Keys:
    return Keys(service.jobs.backends.store.blobs)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def status(service: Service, key: str, path: str = "/v1/jobs") -> int:
    return service.client.get(path, headers=bearer(key)).status_code


def until(service: Service, key: str, wanted: int, seconds: float = 3 * REFRESH_SECONDS) -> float:
    """How long it took until a call with this key was answered so."""
    began = time.monotonic()
    while status(service, key) != wanted:
        assert time.monotonic() - began < seconds, f"still not {wanted}"
        time.sleep(0.05)
    return time.monotonic() - began


def test_every_route_has_a_role_or_is_known_to_be_public() -> None:
    app = create_app()
    public = {name for name, role in ROLES.items() if role is None}
    assert public == {"put_upload_part", "get_health", "get_readiness", "get_problem_type"}
    # What the framework adds has no operation id, and nothing of a patient.
    plain = {getattr(route, "path", "") for route in app.routes if not hasattr(route, "operation_id")}
    assert {path for path in plain if path} <= {
        "/openapi.json",
        "/docs",
        "/docs/oauth2-redirect",
        "/docs-files",
        "/llms.txt",
        # Pages without what they show, and the way to sign in.
        "/",
        "/view/{job_id}",
        "/assets/{name}",
        "/session",
    }
    assert {route.operation_id for route in app.state.routes if isinstance(route, APIRoute)} == set(ROLES)


def calls() -> list[tuple[str, str, str]]:
    return [
        (operation["operationId"], method, path)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ]


def at(path: str) -> str:
    for name, value in {"job_id": "0" * 32, "batch_id": "0" * 32, "upload_id": "0" * 32, "name": "lungs"}.items():
        path = path.replace(f"{{{name}}}", value)
    return path.replace("{number}", "1").replace("{slug}", "damaged-file")


@pytest.mark.parametrize(("operation", "method", "path"), calls())
def test_each_operation_wants_its_role_and_no_other(
    guarded: Service, issuer: Issuer, operation: str, method: str, path: str
) -> None:
    role = ROLES[operation]
    request = {"url": at(path), "method": method}
    answer = guarded.client.request(**request)
    if role is None:
        assert answer.status_code not in (401,)
        assert answer.status_code != 403 or operation == "put_upload_part"
        return
    body = "" if method == "head" else require_problem(answer, 401, "unauthenticated")["detail"]
    assert body == ("" if method == "head" else "the call has no key and no token")
    assert answer.headers["www-authenticate"] == 'Bearer realm="lobewise"'
    others = issuer.token(roles=[str(other) for other in Role if other is not role])
    answer = guarded.client.request(**request, headers=bearer(others))
    assert answer.status_code == 403
    assert f'error="insufficient_scope", scope="{role}"' in answer.headers["www-authenticate"]
    if method != "head":
        assert require_problem(answer, 403, "forbidden")["evidence"] == {"role": role}
    answer = guarded.client.request(**request, headers=bearer(issuer.token(roles=[str(role)])))
    assert answer.status_code not in (401, 403)
    described = DOCUMENT["paths"][path][method]
    assert [*described["security"]] == [{"bearer": []}, {"key": []}]
    assert {"401", "403", "503"} <= set(described["responses"])


def test_a_key_opens_what_its_roles_say_until_it_is_revoked(guarded: Service) -> None:
    key, stored = keys_of(guarded).create("pacs", frozenset({Role.SUBMIT, Role.READ}))
    until(guarded, key, 200)
    assert guarded.client.get("/v1/jobs", headers={"X-API-Key": key}).status_code == 200
    # A proxy keeps `Authorization` for itself.
    both = {"X-API-Key": key, "Authorization": "Basic cHJveHk6cHJveHk="}
    assert guarded.client.get("/v1/jobs", headers=both).status_code == 200
    made = guarded.client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}, headers=bearer(key))
    assert made.status_code == 202
    assert guarded.client.delete(f"/v1/jobs/{made.json()['id']}", headers=bearer(key)).status_code == 403
    keys_of(guarded).revoke(stored.id)
    assert until(guarded, key, 401) < REFRESH_SECONDS + 2
    # Not even its own memory of the ends can bring it back.
    assert keys_of(guarded).get(stored.id).status() == "revoked"


def test_wrong_unknown_expired_and_revoked_keys_get_one_answer(guarded: Service) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    good, _ = keys_of(guarded).create("good", ALL)
    expired, _ = keys_of(guarded).create("expired", ALL, expires_at=past)
    revoked, stored = keys_of(guarded).create("revoked", ALL)
    keys_of(guarded).revoke(stored.id)
    until(guarded, good, 200)
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    unknown = f"lobewise_{'0' * 16}_{'a' * 43}"
    answers = []
    for key in (wrong, unknown, expired, revoked, "nonsense", "a.b.c", "ä" * 40, "x" * 20_000):
        answer = guarded.client.get("/v1/jobs", headers={"Authorization": f"Bearer {key}".encode("latin-1")})
        body = require_problem(answer, 401, "unauthenticated")
        answers.append((body, answer.headers["www-authenticate"]))
    assert answers == [answers[0]] * len(answers)
    assert answers[0][1] == 'Bearer realm="lobewise", error="invalid_token"'


def test_a_rotated_key_overlaps_with_its_successor(guarded: Service) -> None:
    keys = keys_of(guarded)
    life = timedelta(days=90)
    old, stored = keys.create("viewer", frozenset({Role.READ}), "radiology", datetime.now(UTC) + life)
    new, after = keys.rotate(stored.id, timedelta(seconds=2 * REFRESH_SECONDS))
    assert (after.tenant, after.roles, after.name, after.replaces) == ("radiology", stored.roles, "viewer", stored.id)
    assert after.expires_at is not None
    assert abs(after.expires_at - datetime.now(UTC) - life) < timedelta(seconds=10)
    until(guarded, new, 200)
    assert status(guarded, old) == 200
    until(guarded, old, 401)
    assert status(guarded, new) == 200


def test_a_revocation_is_seen_by_every_gateway(guarded: Service) -> None:
    key, stored = keys_of(guarded).create("two gateways", ALL)
    others = [KeyRing(guarded.jobs.backends.store.blobs) for _ in range(2)]
    for ring in others:
        ring.start()
    assert all(ring.find(key) is not None for ring in others)
    keys_of(guarded).revoke(stored.id)
    began = time.monotonic()
    while any(ring.find(key) for ring in others):
        assert time.monotonic() - began < REFRESH_SECONDS + 2
        time.sleep(0.02)
    for ring in others:
        ring.stop()


def test_the_first_key_does_all_and_the_metrics_key_reads_metrics_alone(guarded: Service) -> None:
    assert status(guarded, FIRST_KEY) == status(guarded, FIRST_KEY, "/metrics") == 200
    assert (status(guarded, METRICS_KEY), status(guarded, METRICS_KEY, "/metrics")) == (403, 200)


def test_public_pages_need_nothing(guarded: Service) -> None:
    for path in ("/healthz", "/problems/forbidden", "/openapi.json", "/docs", "/llms.txt"):
        assert guarded.client.get(path).status_code == 200, path
    assert guarded.client.get("/readyz").status_code in (200, 503)
    require_problem(guarded.client.get("/v1/nothing"), 404, "not-found")


def test_the_signature_of_a_part_is_its_right_and_no_other(guarded: Service) -> None:
    announced = {"size_bytes": 2000}
    upload = guarded.client.post("/v1/uploads", json=announced, headers=bearer(FIRST_KEY)).json()
    url = httpx.URL(upload["parts"][0]["url"])
    assert guarded.client.put(url, content=nifti(2000)).status_code == 204
    # Not even with a key that is wrong: nobody looks at it.
    assert guarded.client.put(url, content=nifti(2000), headers=bearer("wrong")).status_code == 204
    require_problem(
        guarded.client.put(url.copy_set_param("signature", "0" * 64), content=nifti(2000)), 403, "url-not-valid"
    )
    other = url.copy_with(path=url.path.replace("/parts/1", "/parts/2"))
    assert guarded.client.put(other, content=nifti(2000)).status_code in (403, 404)
    require_problem(guarded.client.get(url.copy_with(path=url.path.removesuffix("/parts/1"))), 401, "unauthenticated")
    done = guarded.client.post(f"/v1/uploads/{upload['id']}/complete", headers=bearer(FIRST_KEY))
    assert done.status_code == 200


def test_keys_of_two_tenants_see_their_own_and_parts_need_none(guarded: Service) -> None:
    keys = keys_of(guarded)
    left, right = (keys.create(tenant, ALL, tenant)[0] for tenant in ("left", "right"))
    until(guarded, left, 200)
    until(guarded, right, 200)
    upload = guarded.client.post("/v1/uploads", json={"size_bytes": 2000}, headers=bearer(left)).json()
    assert guarded.client.put(upload["parts"][0]["url"], content=nifti(2000)).status_code == 204
    assert status(guarded, left, f"/v1/uploads/{upload['id']}") == 200
    for key in (right, FIRST_KEY):
        assert status(guarded, key, f"/v1/uploads/{upload['id']}") == 404
    made = guarded.client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}, headers=bearer(left)).json()
    assert status(guarded, left, f"/v1/jobs/{made['id']}") == 200
    assert status(guarded, right, f"/v1/jobs/{made['id']}") == 404


def test_a_stream_ends_when_its_key_is_revoked(guarded: Service) -> None:
    key, stored = keys_of(guarded).create("watcher", ALL)
    until(guarded, key, 200)
    made = guarded.client.post("/v1/jobs", files={"file": ("scan.nii", nifti())}, headers=bearer(FIRST_KEY)).json()
    with guarded.client.stream("GET", f"/v1/jobs/{made['id']}/events", headers=bearer(key)) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert any(line.startswith("data:") and "queued" in line for line in lines)
        keys_of(guarded).revoke(stored.id)
        until(guarded, key, 401)
        guarded.worker.fail(made["id"])
        # It ends without telling what became of the job.
        assert not [line for line in lines if line.startswith("data:") and "failed" in line]


# Tokens


def test_a_token_is_known_by_its_claims(guarded: Service, issuer: Issuer) -> None:
    assert status(guarded, issuer.token()) == 200
    assert status(guarded, issuer.token(aud=["other", AUDIENCE])) == 200
    assert status(guarded, issuer.token(roles="submit read")) == 200
    assert status(guarded, issuer.token(roles="submit")) == status(guarded, issuer.token(roles=None)) == 403
    now = int(time.time())
    assert status(guarded, issuer.token(exp=now - 10)) == 200, "within the leeway"
    assert status(guarded, issuer.token(nbf=now + 10)) == 200, "within the leeway"


#: Constants: what is drawn from the clock gives a test another name in each process that collects it.
LONG_AGO, FAR_OFF = 1_000_000_000, 4_000_000_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": None},
        {"exp": None},
        {"exp": LONG_AGO},
        {"exp": "soon"},
        {"nbf": FAR_OFF},
        {"iat": FAR_OFF},
        {"sub": None},
        {"sub": 7},
    ],
    ids=str,
)
def test_a_token_with_wrong_claims_is_refused(guarded: Service, issuer: Issuer, wrong: dict[str, object]) -> None:
    answer = guarded.client.get("/v1/jobs", headers=bearer(issuer.token(**wrong)))
    require_problem(answer, 401, "unauthenticated")


def test_only_signatures_by_the_issuers_private_key_count(guarded: Service, issuer: Issuer) -> None:
    stranger = RSAKey.generate_key(2048, {"kid": "first"})
    assert status(guarded, issuer.token(stranger)) == 401
    head, body, signature = issuer.token().split(".")
    assert status(guarded, f"{head}.{body}.{signature[:-6]}AAAAAA") == 401
    assert status(guarded, f"{head}.{issuer.token(roles=['admin']).split('.')[1]}.{signature}") == 401
    assert status(guarded, f"{head}.{body}.") == 401
    # The two classics: no signature, and the public key as a shared secret.
    none = jwt.encode({"alg": "none"}, {"sub": "x"}, OctKey.generate_key(256), algorithms=["none"])
    assert status(guarded, none) == 401
    # By hand: the library does not take a public key for a secret.
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"first"}').decode().rstrip("=")
    mac = hmac.digest(issuer.keys[0].as_pem(private=False), f"{header}.{body}".encode(), "sha256")
    assert status(guarded, f"{header}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}") == 401
    # Pinned: one that the operator has not named is refused, though the key is right.
    assert status(guarded, issuer.token(header={"alg": "RS512"})) == 401


def test_a_new_key_of_the_issuer_is_found_and_a_withdrawn_one_ends(
    guarded: Service, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = issuer.keys[0]
    before = issuer.token(sub="before")
    assert status(guarded, before) == 200
    time.sleep(0.6)
    # Keys for other ends, and a shared secret, are passed over.
    issuer.others = [
        OctKey.generate_key(256, {"kid": "shared"}).as_dict(private=True),
        RSAKey.generate_key(2048, {"kid": "enc", "use": "enc"}).as_dict(private=False),
        {"kty": "new", "kid": "later"},
    ]
    for key in (ECKey.generate_key("P-256", {"kid": "ec"}), OKPKey.generate_key("Ed25519", {"kid": "ed"})):
        time.sleep(0.6)
        issuer.keys = [key]
        assert status(guarded, issuer.token()) == 200
        assert status(guarded, before) == 401, "its key is withdrawn"
    issuer.keys = [old]
    # Keys are asked for no more often than the floor says, whatever tokens name.
    time.sleep(0.6)
    asked = issuer.asked
    stranger = RSAKey.generate_key(2048, {"kid": "nobody"})
    assert {status(guarded, issuer.token(stranger, sub=str(number))) for number in range(20)} == {401}
    assert issuer.asked - asked <= 2
    monkeypatch.setattr(tokens, "JWKS_SECONDS", 0.0)
    time.sleep(0.6)
    assert status(guarded, before) == 200
    # An issuer that is down: what is known of its keys holds for a while, then tokens cannot be checked; keys can.
    issuer.is_down = True
    time.sleep(0.6)
    assert status(guarded, before) == status(guarded, issuer.token(sub="another")) == 200
    monkeypatch.setattr(tokens, "STALE_SECONDS", 0.0)
    time.sleep(0.6)
    try:
        require_problem(guarded.client.get("/v1/jobs", headers=bearer(before)), 503, "issuer-unavailable")
        assert status(guarded, FIRST_KEY) == 200
    finally:
        issuer.is_down = False
    time.sleep(0.6)
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "FLOOR_SECONDS", 0.5)
    assert status(guarded, issuer.token(sub="again")) in (200, 503)


def test_roles_and_tenant_may_lie_where_the_operator_says(tmp_path: Path, issuer: Issuer) -> None:
    settings = AccessSettings(
        oidc_issuer=issuer.address,
        oidc_audience=AUDIENCE,
        oidc_roles_claim="realm_access.roles",
        oidc_role_prefix="lobewise.",
        oidc_tenant_claim="https://clinic.example/tenant",
    )

    async def check(**claims: object) -> object:
        checker = tokens.TokenChecker(settings)
        try:
            return await checker.check(issuer.token(**claims))
        finally:
            await checker.close()

    tenant = {"https://clinic.example/tenant": "radiology"}
    roles = {"realm_access": {"roles": ["lobewise.read", "submit", 7]}}
    caller = asyncio.run(check(**tenant, **roles))
    assert (caller.tenant, caller.roles) == ("radiology", {Role.READ})  # type: ignore[attr-defined]
    assert "someone" not in caller.subject  # type: ignore[attr-defined]
    for wrong in ({}, {"https://clinic.example/tenant": "../other"}, {"https://clinic.example/tenant": ["radiology"]}):
        with pytest.raises(ForbiddenError):
            asyncio.run(check(**wrong, **roles))


def test_no_key_and_no_token_reaches_the_log(
    guarded: Service, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    key, _ = keys_of(guarded).create("logged", ALL)
    secrets = [key.split("_")[2], FIRST_KEY, METRICS_KEY, issuer.token(), issuer.token(exp=1), "wr0ngk3y" * 5]
    with caplog.at_level(logging.DEBUG):
        until(guarded, key, 200)
        for secret in secrets:
            guarded.client.get("/v1/jobs", headers=bearer(secret))
            guarded.client.get("/v1/jobs", headers={"X-API-Key": secret})
    shown = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "a token was refused" in shown
    for secret in secrets:
        assert secret not in shown
    for path in guarded.stored_files():
        assert key.encode() not in path.read_bytes()


# Where nothing is configured


def test_an_open_gateway_shuts_when_the_first_key_is_made_and_never_opens_again(alone: Service) -> None:
    assert alone.client.get("/v1/jobs").status_code == 200
    assert alone.client.get("/v1/jobs", headers=bearer("anything")).status_code == 200
    key, stored = keys_of(alone).create("first", frozenset({Role.READ}))
    deadline = time.monotonic() + 2 * REFRESH_SECONDS
    while alone.client.get("/v1/jobs").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status(alone, key) == 200
    keys_of(alone).revoke(stored.id)
    until(alone, key, 401)
    assert alone.client.get("/v1/jobs").status_code == 401


def doors_over(folder: Path, **settings: object) -> tuple[Doors, Keys]:
    jobs = connect(JobsSettings(data_dir=folder))
    try:
        blobs = jobs.backends.store.blobs
    finally:
        jobs.close()
    return Doors(AccessSettings(**settings), KeyRing(blobs)), Keys(blobs)  # type: ignore[arg-type]


def test_another_address_than_the_loopback_wants_a_word_about_access(tmp_path: Path) -> None:
    for number, host in enumerate((EVERYWHERE, "::", "", socket.gethostname())):
        doors, _ = doors_over(tmp_path / str(number))
        if number == 3 and socket.gethostbyname(host).startswith("127."):
            continue
        with pytest.raises(SettingsError, match=r"lobewise keys create.*LOBEWISE_ACCESS=open"):
            doors.require_guarded(host)
    for number, host in enumerate(("127.0.0.1", "::1", "localhost", "127.8.8.8"), 10):
        doors, _ = doors_over(tmp_path / str(number))
        doors.require_guarded(host)
    for number, said in enumerate(
        (
            {"access": "open"},
            {"access": "required"},
            {"first_key": SecretStr(FIRST_KEY)},
            {"oidc_issuer": "https://login.example", "oidc_audience": AUDIENCE},
        ),
        20,
    ):
        doors, _ = doors_over(tmp_path / str(number), **said)
        doors.require_guarded(EVERYWHERE)
        doors.start()
        assert doors.are_open is (said == {"access": "open"})
        asyncio.run(doors.close())
    doors, keys = doors_over(tmp_path / "keyed")
    _, stored = keys.create("one", ALL)
    keys.revoke(stored.id)
    doors.require_guarded(EVERYWHERE)
    assert not doors.are_open


def test_another_server_cannot_open_what_ours_would_not(tmp_path: Path) -> None:
    doors, _ = doors_over(tmp_path)
    doors.start()
    for host in ("127.0.0.1", "::1", None):
        assert asyncio.run(doors.caller_of(None, None, host)).roles == ALL
    for host in ("10.1.2.3", "2001:db8::1"):
        with pytest.raises(UnauthenticatedError):
            asyncio.run(doors.caller_of(None, None, host))
    asyncio.run(doors.close())


def test_a_gateway_on_another_address_refuses_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOBEWISE_DATA_DIR", str(tmp_path))
    with pytest.raises(SettingsError, match="where other machines reach it"):
        run(host=EVERYWHERE, port=0)
    assert ApiSettings().host == "127.0.0.1"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"LOBEWISE_FIRST_KEY": "short"}, "LOBEWISE_FIRST_KEY: it must be 32 to 256"),
        ({"LOBEWISE_OIDC_ISSUER": "https://login.example"}, "LOBEWISE_OIDC_AUDIENCE go together"),
        ({"LOBEWISE_OIDC_ISSUER": "http://login.example", "LOBEWISE_OIDC_AUDIENCE": "x"}, "must begin with https://"),
        ({"LOBEWISE_OIDC_ALGORITHMS": "RS256 HS256"}, "LOBEWISE_OIDC_ALGORITHMS"),
        ({"LOBEWISE_OIDC_ALGORITHMS": "none"}, "LOBEWISE_OIDC_ALGORITHMS"),
        ({"LOBEWISE_ACCESS": "closed"}, "LOBEWISE_ACCESS"),
    ],
)
def test_settings_that_open_by_mistake_stop_the_start(
    settings: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=sentence) as raised:
        read_settings(AccessSettings)
    assert "short" not in str(raised.value)
