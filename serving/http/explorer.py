"""The Explorer: a page at /explore that shows recommendations and their reasons through the JSON API.

The files in `serving/http/explorer_page` are served as they are, without a build step. The page itself holds no data,
so it needs no token; it asks for one when the API does.
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
# Allow only files of this origin, nothing inline, and no script that turns a string into markup: titles and
# descriptions are untrusted.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser must not mix the files of two deployments
}


def explorer_router() -> APIRouter:
    """Routes of the page and its files, and a redirect from `/`. Any other file name is 404."""
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
