"""The Explorer: a page at /explore that shows recommendations and their reasons through the JSON API.

The files in `serving/http/explorer_page` are served as they are, without a build step. The page itself holds no data,
so it needs no token; it asks for one when the API does.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from serving.http.pages import POLICY, files_in, page_router

FOLDER = Path(__file__).parent / "explorer_page"
PAGE = "explorer.html"
ADDRESS = "/explore"
# No script may turn a string into markup: titles and descriptions are untrusted.
EXPLORER_POLICY = f"{POLICY}; require-trusted-types-for 'script'; trusted-types 'none'"


def explorer_router() -> APIRouter:
    """Routes of the page and its files, and a redirect from `/`."""
    router = page_router(ADDRESS, PAGE, files_in(FOLDER), EXPLORER_POLICY)

    @router.get("/")
    async def start() -> RedirectResponse:
        return RedirectResponse(ADDRESS)

    return router
