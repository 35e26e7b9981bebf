"""Files of pages, served as they are. The headers allow a page nothing but files and answers of this origin."""

from collections.abc import Mapping
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser must not mix the files of two deployments
}


def page_router(address: str, page: str, files: Mapping[str, Path], policy: str = POLICY) -> APIRouter:
    """Routes of a page at `address` and of its files below it, by name. Any other name is 404."""
    router = APIRouter(include_in_schema=False)

    def response(name: str) -> FileResponse:
        headers = HEADERS | {"Content-Security-Policy": policy}
        return FileResponse(files[name], media_type=MEDIA_TYPES[files[name].suffix], headers=headers)

    @router.get(address)
    def whole() -> FileResponse:
        return response(page)

    @router.get(f"{address}/{{name}}")
    def file(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404, f"{address} has no such file")
        return response(name)

    return router


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a page by name."""
    return {file.name: file for file in folder.iterdir() if file.suffix in MEDIA_TYPES}
