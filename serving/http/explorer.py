"""The Explorer: a page at /explore that shows what this service says, and why, through its own JSON API.

The page is written by hand and served as it lies in `serving/http/explorer_page`; there is no build step. It holds no
data, so it needs no token: it asks for one when the API does.
"""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, RedirectResponse

FOLDER = Path(__file__).parent / "explorer_page"
PAGE = "explorer.html"
ADDRESS = "/explore"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only files of this origin, nothing inline, and no script may turn a string into markup: titles and descriptions are
# written by others.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # page and scripts belong together; a browser must not mix two deployments
}


def explorer_router() -> APIRouter:
    """Routes of the page, where `/` leads to, and its files; a name outside the folder's own list is 404."""
    router = APIRouter(include_in_schema=False)
    files = {file.name: file for file in FOLDER.iterdir() if file.suffix in MEDIA_TYPES}

    @router.get("/")
    async def start() -> RedirectResponse:
        return RedirectResponse(ADDRESS)

    @router.get(ADDRESS)
    def page() -> FileResponse:
        return _response(files[PAGE])

    @router.get(f"{ADDRESS}/{{name}}")
    def file(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, "the Explorer has no such file")
        return _response(files[name])

    return router


def _response(file: Path) -> FileResponse:
    return FileResponse(file, media_type=MEDIA_TYPES[file.suffix], headers=HEADERS)
