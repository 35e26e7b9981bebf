"""The Explorer's files: what can be fetched, the content policy, and no use of other origins."""

import re
from typing import get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving.http.explorer import FOLDER, PAGE, explorer_router
from serving.schemas import Fallback, SearchFallback

FILES = sorted(FOLDER.iterdir())
SCRIPTS = [file for file in FILES if file.suffix == ".js"]


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(explorer_router())
    return TestClient(app)


@pytest.mark.parametrize("path", ["", *(f"/{file.name}" for file in FILES)])
def test_every_file_has_a_strict_content_policy(client, path):
    response = client.get(f"/explore{path}")

    assert response.status_code == 200
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"] != "application/octet-stream"


@pytest.mark.parametrize("name", ["explorer.py", "nothing.js", "..%2Fexplorer.py", "%2e%2e/explorer.py", "..", ""])
def test_nothing_else_can_be_fetched(client, name):
    assert client.get(f"/explore/{name}", follow_redirects=False).status_code in (307, 404)


def test_the_root_address_redirects_to_the_page(client):
    response = client.get("/", follow_redirects=False)

    assert (response.status_code, response.headers["location"]) == (307, "/explore")


def test_the_page_has_nothing_inline():
    page = (FOLDER / PAGE).read_text()

    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\bstyle=|\bon[a-z]+=", page)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_refers_to_another_origin(file):
    named = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.read_text())

    assert set(named) <= {"http://www.w3.org/2000/svg"}  # a name, never fetched


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_no_script_makes_markup_from_text_or_uses_permanent_storage(file):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|localStorage|cookie"
    )

    assert not re.findall(forbidden, file.read_text())


def test_every_file_that_is_named_exists():
    page = (FOLDER / PAGE).read_text()
    named = set(re.findall(r'"explore/([\w.]+)"', page))
    for script in SCRIPTS:
        named |= set(re.findall(r'from "\./([\w.]+)"', script.read_text()))

    assert named == {file.name for file in FILES} - {PAGE}


@pytest.mark.parametrize(("name", "fallbacks"), [("recommendations.js", Fallback), ("search.js", SearchFallback)])
def test_every_fallback_is_explained(name, fallbacks):
    script = (FOLDER / name).read_text()

    assert [each for each in get_args(fallbacks) if f"\n  {each}: " not in script] == []
