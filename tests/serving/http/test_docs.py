"""The page of the API's documentation: everything it loads is ours, and its policy allows nothing else."""

import re

import pytest

from serving.http.docs import ADDRESS, FOLDER, PAGE, SWAGGER_FILES


@pytest.fixture
def client(serve):
    return serve()


@pytest.mark.parametrize("path", ["", "/docs.js", *(f"/{name}" for name in SWAGGER_FILES)])
def test_every_file_is_served_by_us_with_a_strict_content_policy(client, path):
    response = client.get(f"{ADDRESS}{path}")

    policy = response.headers["content-security-policy"]
    assert response.status_code == 200 and len(response.content) > 100
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy and "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_nothing_inline_and_nothing_of_another_host():
    page = (FOLDER / PAGE).read_text()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", page)
    assert loaded and not [each for each in loaded if "//" in each]


def test_what_the_page_loads_exists(client):
    page = client.get(ADDRESS).text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert {client.get(f"/{each}").status_code for each in [*loaded, "openapi.json"]} == {200}


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/docs/nothing.js", "/docs/..%2Fdocs.py"])
def test_no_other_page_documents_the_service(client, path):
    assert client.get(path).status_code == 404
