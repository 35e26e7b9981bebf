"""The OpenAPI document is right: every example is valid, and generated requests get documented answers."""

import hypothesis
import numpy as np
import pydantic
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from grasp.days import last_second
from serving import schemas
from serving.answers.search import Search
from serving.http.access import Access
from serving.http.app import create_app

TOKEN = "all-roles-0123456789abcdef"
ACCESS = {f"GRASP_TOKENS_{role}": TOKEN for role in ("SERVE", "READ", "OPERATE")}
MODELS = [each for each in vars(schemas).values() if isinstance(each, type) and issubclass(each, pydantic.BaseModel)]

OPERATIONS = [
    ("POST", "/v1/recommendations"),
    ("POST", "/v1/recommendations/batch"),
    ("POST", "/v1/scores"),
    ("POST", "/v1/impressions"),
    ("POST", "/v1/outcomes"),
    ("GET", "/v1/item"),
    ("GET", "/v1/items/{item_id}"),
    ("GET", "/v1/item/similar"),
    ("GET", "/v1/items/{item_id}/similar"),
    ("GET", "/v1/user"),
    ("GET", "/v1/users/{user_id}"),
    ("GET", "/v1/user/similar"),
    ("GET", "/v1/users/{user_id}/similar"),
    ("GET", "/v1/user/features"),
    ("GET", "/v1/users/{user_id}/features"),
    ("GET", "/v1/categories"),
    ("GET", "/v1/examples"),
    ("GET", "/v1/search"),
    ("GET", "/v1/releases"),
    ("GET", "/v1/dependencies"),
    ("GET", "/metrics"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
]


class AnyText:
    """Encodes every text as the first axis, which is enough because no vectors are compared."""

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.tile(np.eye(6, dtype=np.float32)[0], (len(texts), 1))


@pytest.fixture
def application(settings_with, users, monkeypatch):
    monkeypatch.setattr("serving.answers.search.MIN_COSINE", -1)
    settings = settings_with(lookup_timeout_ms=5000)
    search = Search(settings, lambda _: AnyText())
    return create_app(settings, lambda *_: users, 3600.0, Access.from_environment(ACCESS), search)


@pytest.fixture
def described(publish_day, application):
    publish_day()
    return schemathesis.openapi.from_asgi("/openapi.json", application)


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_schema_or_ends_in_a_server_error(described, method, path, mode):
    @hypothesis.given(case=described[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=10,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        derandomize=True,
        database=None,
    )
    def check(case):
        # A parameter that the API does not have is ignored, so a good answer to it is right.
        is_unknown = not set(case.query or ()) <= {each.name for each in described[path][method].query}
        excluded = [negative_data_rejection] if is_unknown else []
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=excluded)

    try:
        check()
    except hypothesis.errors.Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # nothing about it can be wrong


def test_every_operation_is_listed(application):
    paths = application.openapi()["paths"]

    assert {(method.upper(), path) for path, operations in paths.items() for method in operations} == set(OPERATIONS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_example_is_valid(model):
    for example in (model.model_config.get("json_schema_extra") or {}).get("examples", []):
        model.model_validate(example)


def test_the_example_of_a_row_carries_the_last_second_of_its_day():
    (example,) = schemas.UserFeaturesResponse.model_config["json_schema_extra"]["examples"]

    shown = schemas.UserFeaturesResponse.model_validate(example)
    assert shown.event_timestamp == last_second(schemas.ANSWER["feature_day"])


def test_every_endpoint_has_an_example_and_names_its_errors(application):
    description = application.openapi()
    bodies = description["components"]["schemas"]

    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                content = response.get("content", {}).get("application/json")
                named = content and content["schema"].get("$ref", "").rpartition("/")[2]
                assert not named or named == "Health" or "examples" in bodies[named], f"{method} {path} {status}"
            if path.startswith("/v1/"):
                assert {"401", "403", "503"} <= set(operation["responses"]), f"{method} {path}"
            if method == "post":
                assert {"400", "404", "408", "413", "422"} <= set(operation["responses"]), path
