"""Whose word about a request counts, with headers as proxies write them; `tests/proxies` has real ones."""

from collections.abc import Mapping

import httpx
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from api.forwarded import ForwardedHeaders, Hop, hops_of
from jobs.errors import SettingsError
from jobs.settings import ApiSettings, read_settings

X_FORWARDED = {
    "LOBEWISE_API_FORWARDED_HEADERS": "X-Forwarded-For x-forwarded-proto x-forwarded-host x-forwarded-prefix",
}
FORWARDED = {"LOBEWISE_API_FORWARDED_HEADERS": "forwarded"}
PROXIES = {"LOBEWISE_API_FORWARDED_ALLOW_IPS": "10.0.0.1, 192.168.0.0/16,fd00::/8"}


async def seen(
    environment: Mapping[str, str],
    headers: Mapping[str, str] | list[tuple[str, str]],
    peer: str = "10.0.0.1",
    path: str = "/v1/jobs",
) -> dict[str, str]:
    """What the application sees of a request by `peer`."""

    async def show(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        shown = {"client": request.client.host if request.client else "", "url": str(request.url)}
        await JSONResponse(shown | {"root": scope.get("root_path", "")})(scope, receive, send)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        app = ForwardedHeaders(show, read_settings(ApiSettings))
    transport = httpx.ASGITransport(app, client=(peer, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway:8000") as client:
        answer: dict[str, str] = (await client.get(path, headers=headers)).json()
    return answer


UNTOUCHED = {"client": "10.0.0.1", "url": "http://gateway:8000/v1/jobs", "root": ""}
ALL = {
    "X-Forwarded-For": "1.2.3.4",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "ct.example:8443",
    "X-Forwarded-Prefix": "/lobewise/",
    "Forwarded": "for=5.6.7.8;host=other.example;proto=https",
}


@pytest.mark.anyio
async def test_named_headers_of_a_trusted_proxy_are_believed() -> None:
    assert await seen(X_FORWARDED | PROXIES, ALL) == {
        "client": "1.2.3.4",
        "url": "https://ct.example:8443/lobewise/v1/jobs",
        "root": "/lobewise",
    }
    assert await seen(FORWARDED | PROXIES, ALL) == {
        "client": "5.6.7.8",
        "url": "https://other.example/v1/jobs",
        "root": "",
    }


@pytest.mark.anyio
@pytest.mark.parametrize("names", [X_FORWARDED, FORWARDED])
@pytest.mark.parametrize("peer", ["10.0.0.2", "172.16.0.1", "2001:db8::1", "unix"])
async def test_nobody_else_is(names: dict[str, str], peer: str) -> None:
    assert await seen(names | PROXIES, ALL, peer) == UNTOUCHED | {"client": peer}


@pytest.mark.anyio
@pytest.mark.parametrize("peer", ["192.168.7.7", "fd00::7", "::ffff:10.0.0.1"])
async def test_networks_and_addresses_of_any_family_are_trusted(peer: str) -> None:
    assert (await seen(X_FORWARDED | PROXIES, ALL, peer))["url"] == "https://ct.example:8443/lobewise/v1/jobs"


@pytest.mark.anyio
async def test_without_a_word_of_the_operator_scheme_and_address_alone_are_believed() -> None:
    """Most proxies pass on a client's `X-Forwarded-Host`."""
    expected = {"client": "1.2.3.4", "url": "https://gateway:8000/v1/jobs", "root": ""}
    assert await seen({}, ALL, peer="127.0.0.1") == expected


@pytest.mark.anyio
@pytest.mark.parametrize("everybody", [PROXIES, {"LOBEWISE_API_FORWARDED_ALLOW_IPS": "*"}])
async def test_what_a_client_wrote_before_the_proxy_is_not_the_proxy_s_word(everybody: dict[str, str]) -> None:
    chained = "for=6.6.6.6;host=evil.example, for=1.2.3.4;host=ct.example;proto=https"
    answer = await seen(FORWARDED | everybody, {"Forwarded": chained})
    assert (answer["client"], answer["url"]) == ("1.2.3.4", "https://ct.example/v1/jobs")
    listed = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Host", "evil, ct.example")]
    answer = await seen(X_FORWARDED | everybody, listed)
    assert (answer["client"], answer["url"]) == ("1.2.3.4", "http://ct.example/v1/jobs")


@pytest.mark.anyio
async def test_of_several_trusted_proxies_the_one_beside_the_client_counts() -> None:
    chained = "for=6.6.6.6;host=evil.example, for=1.2.3.4;host=ct.example;proto=https, for=192.168.0.9;host=inner"
    answer = await seen(FORWARDED | PROXIES, {"Forwarded": chained})
    assert (answer["client"], answer["url"]) == ("1.2.3.4", "https://ct.example/v1/jobs")
    assert (await seen(FORWARDED | PROXIES, {"Forwarded": "for=192.168.0.9;host=inner"}))["client"] == "192.168.0.9"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-Host": 'a"b', "X-Forwarded-Proto": "javascript", "X-Forwarded-Prefix": "//evil.example"},
        {"X-Forwarded-Host": "evil.example/x?", "X-Forwarded-Prefix": "/a/../b", "X-Forwarded-Proto": ""},
        {"X-Forwarded-Host": "", "X-Forwarded-Prefix": "/<script>"},
        {"X-Forwarded-Prefix": "lobewise"},
        {},
    ],
)
async def test_what_cannot_be_is_not_repeated(headers: dict[str, str]) -> None:
    assert await seen(X_FORWARDED | PROXIES, headers) == UNTOUCHED


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/jobs", "/lobewise/v1/jobs"])
@pytest.mark.parametrize(
    "environment",
    [
        {"LOBEWISE_API_ROOT_PATH": "/lobewise/"},
        {"LOBEWISE_API_PUBLIC_URL": "https://ct.example/lobewise/"},
        {"LOBEWISE_API_PUBLIC_URL": "https://ct.example/other", "LOBEWISE_API_ROOT_PATH": "/lobewise"},
    ],
)
async def test_a_prefix_may_be_stripped_or_left(environment: dict[str, str], path: str) -> None:
    answer = await seen(environment, {}, path=path)
    assert (answer["url"], answer["root"]) == ("http://gateway:8000/lobewise/v1/jobs", "/lobewise")


@pytest.mark.parametrize(
    ("header", "hops"),
    [
        ("", []),
        ("for=1.2.3.4", [Hop("1.2.3.4")]),
        ('For="[2001:db8::17]:4711";Proto=https', [Hop("2001:db8::17", "https")]),
        ('for="1.2.3.4:80" ; host="a\\"b", ,proto=http;by=x', [Hop("1.2.3.4", "", 'a"b'), Hop("", "http")]),
        ('host="a,b;for=c"', [Hop(host="a,b;for=c")]),
        ("for=_hidden, for=unknown", [Hop("_hidden"), Hop("unknown")]),
        ('for="1.2.3.4', []),
        ("for=1.2.3.4 host=x", []),
        ("nonsense", []),
        ("for=1.2.3.4," + '"' * 1000, []),
    ],
)
def test_elements_of_forwarded(header: str, hops: list[Hop]) -> None:
    assert hops_of(header) == hops


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LOBEWISE_API_FORWARDED_HEADERS", "forwarded x-forwarded-host"),
        ("LOBEWISE_API_FORWARDED_HEADERS", "x-real-ip"),
        ("LOBEWISE_API_FORWARDED_ALLOW_IPS", "nginx"),
        ("LOBEWISE_API_FORWARDED_ALLOW_IPS", "10.0.0.0/33"),
        ("LOBEWISE_API_ROOT_PATH", "lobewise"),
        ("LOBEWISE_API_ROOT_PATH", "/v1"),
        ("LOBEWISE_API_ROOT_PATH", "/a/../b"),
    ],
)
def test_what_could_not_work_stops_the_start(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        read_settings(ApiSettings)
