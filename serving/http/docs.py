"""The page at /docs: Swagger UI over the OpenAPI document.

Its scripts come from the package `fastapi-offline`, not from another host: the page lies on the origin whose Explorer
keeps a token.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter

from serving.http.pages import POLICY, files_in, page_router

FOLDER = Path(__file__).parent / "docs_page"
PAGE = "docs.html"
ADDRESS = "/docs"
SWAGGER_FILES = ("swagger-ui-bundle.js", "swagger-ui.css")
DOCS_POLICY = f"{POLICY}; img-src 'self' data:"  # the arrows of Swagger UI's style sheet


def docs_router() -> APIRouter:
    swagger = Path(str(files("fastapi_offline"))) / "static"
    return page_router(ADDRESS, PAGE, files_in(FOLDER) | {name: swagger / name for name in SWAGGER_FILES}, DOCS_POLICY)
