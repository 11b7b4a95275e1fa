"""The pages for people: worklist and result, and the session that they are read with.

They are built from `web/` (`make web`) into `api/pages/`; without that the addresses say so. What they show comes from
the API, by the roles of who is signed in. They stand beside the OpenAPI document, and not in it.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

from api.access import COOKIE
from api.errors import ApiError
from jobs import problems
from jobs.access.caller import Caller
from jobs.access.doors import Doors
from jobs.errors import UnauthenticatedError
from jobs.settings import ApiSettings
from jobs.states import is_id

FOLDER: Final = Path(__file__).parent / "web"
NOT_BUILT: Final = (
    "The pages are not built here. `make web` builds them, with node and npm; the image of the gateway has them.\n"
    "The interface for programs is all there: /docs\n"
)
#: Of a key or token, as JSON.
_LONGEST_BODY: Final = 8 << 10
#: A browser keeps no larger cookie.
_LONGEST_KEY: Final = 2000
#: NiiVue compiles shaders and no scripts; it makes pictures and fonts from `data:` and `blob:`, and writes no markup.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


def install(app: FastAPI) -> None:
    """Add the addresses of the pages to the gateway."""
    app.add_route("/", _page("index.html"), methods=["GET"])
    app.add_route("/view/{job_id}", _page("view.html"), methods=["GET"])
    app.add_route("/assets/{name}", asset, methods=["GET"])
    app.add_route("/session", look, methods=["GET"])
    app.add_route("/session", sign_in, methods=["POST"])
    app.add_route("/session", sign_out, methods=["DELETE"])


def _page(name: str) -> Any:
    async def page(request: Request) -> Response:
        job_id = request.path_params.get("job_id")
        if job_id is not None and not is_id(job_id):
            raise ApiError(problems.NOT_FOUND, problems.NOT_FOUND.meaning)
        text = text_of(FOLDER / name)
        if text is None:
            return PlainTextResponse(NOT_BUILT, 404)
        root = request.scope.get("root_path", "").rstrip("/")
        # All addresses in the page are relative to this one, so that a prefix before the path changes no file.
        body = text.replace('<base href="/"', f'<base href="{root}/"', 1)
        return Response(body, headers={"Content-Security-Policy": POLICY}, media_type="text/html; charset=utf-8")

    return page


@lru_cache
def text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


async def asset(request: Request) -> Response:
    name = str(request.path_params["name"])
    path = FOLDER / "assets" / name
    if name.startswith(".") or path.parent != FOLDER / "assets" or not path.is_file() or path.suffix == ".gz":
        raise ApiError(problems.NOT_FOUND, problems.NOT_FOUND.meaning)
    # Their names have a hash of what they hold, and they hold nothing of any patient.
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    packed = path.with_name(f"{name}.gz")
    if "gzip" in request.headers.get("accept-encoding", "") and packed.is_file():
        path, headers["Content-Encoding"] = packed, "gzip"
    return FileResponse(path, headers=headers, media_type=_TYPES.get(Path(name).suffix, "application/octet-stream"))


async def look(request: Request) -> Response:
    """Who is signed in, and whether anybody has to be."""
    doors: Doors = request.app.state.doors
    caller: Caller = request.state.caller
    is_known = getattr(request.state, "refusal", None) is None
    return JSONResponse(
        {
            "needs_key": not doors.are_open,
            "is_known": is_known,
            "tenant": caller.tenant if is_known else None,
            "roles": sorted(caller.roles),
        }
    )


async def sign_in(request: Request) -> Response:
    """Take a key, and give a cookie. Raises JobsError, ApiError."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LONGEST_BODY:
            break
    try:
        key = json.loads(body)["key"]
    except (ValueError, KeyError, TypeError):
        key = None
    if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY:
        raise UnauthenticatedError(has_credentials=False)
    server = request.scope.get("server")
    await request.app.state.doors.caller_of(None, key.strip(), server[0] if server and server[1] is not None else None)
    settings: ApiSettings = request.app.state.settings
    sealed = await run_sync(request.app.state.sessions.seal, key.strip(), settings.session_seconds)
    response = Response(status_code=204)
    _set_cookie(request, response, sealed, settings.session_seconds)
    return response


async def sign_out(request: Request) -> Response:
    response = Response(status_code=204)
    _set_cookie(request, response, "", 0)
    return response


def _set_cookie(request: Request, response: Response, value: str, seconds: int) -> None:
    response.set_cookie(
        COOKIE,
        value,
        max_age=seconds,
        path=request.scope.get("root_path", "").rstrip("/") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        # Not sent with what another site's page starts; what changes something is refused by its origin, too.
        samesite="strict",
    )
