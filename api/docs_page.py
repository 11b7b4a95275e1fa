"""`/docs`: Swagger UI with its files from this service, and with leave for its own script alone."""

import hashlib
import re
from base64 import b64encode
from typing import Final

from fastapi import Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

#: Where `fastapi_offline` puts the files.
STATIC_URL: Final = "/docs-files"
_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


async def docs_page(request: Request) -> HTMLResponse:
    """The OpenAPI document in a browser."""
    root = request.scope.get("root_path", "").rstrip("/")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root}{STATIC_URL}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC_URL}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC_URL}/favicon.png",
    )
    # The page's own script names the document, and so the prefix: it differs from proxy to proxy.
    scripts = " ".join(f"'{digest_of(script)}'" for script in _SCRIPT.findall(bytes(page.body)))
    page.headers["Content-Security-Policy"] = (
        # Swagger UI writes styles into its elements, and its pictures into its styles.
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return page


def digest_of(text: bytes) -> str:
    """What a Content-Security-Policy calls an element's text."""
    return f"sha256-{b64encode(hashlib.sha256(text).digest()).decode()}"
