"""Error answers: what is wrong and the request id, but never the input."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.http.request_context import HEADER
from serving.schemas import Problem, WrongRequest

# The documented errors; each route lists the ones it can answer.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request body is not UTF-8."},
    401: {"model": Problem, "description": "No valid token, where tokens are configured."},
    403: {"model": Problem, "description": "The token's role may not do this."},
    404: {"model": Problem, "description": "No such item, user, release, category or address."},
    408: {"model": Problem, "description": "The request body took too long."},
    413: {"model": Problem, "description": "The request body is too large."},
    422: {"model": WrongRequest, "description": "The request is invalid; each mistake by field."},
    503: {
        "model": Problem,
        "description": "No release is loaded, or a needed service is down; `detail` says which.",
    },
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI documentation of these errors."""
    return {status: ERRORS[status] for status in statuses}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    status, detail, headers = 500, "", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, str(error.detail), error.headers
    return _answer(request, status, detail, headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """Field and message of each mistake. The input is not repeated: it may be large, or not even text."""
    mistakes = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [_not_json(each["loc"]) if each["type"] == "json_invalid" else _mistake(each) for each in mistakes]
    text = [{key: value.encode(errors="replace").decode() for key, value in each.items()} for each in detail]
    return _answer(request, 422, text, None)


def _mistake(each: dict[str, Any]) -> dict[str, str]:
    return {"field": ".".join(str(part) for part in each["loc"]), "message": str(each["msg"])}


def _not_json(loc: tuple[str | int, ...]) -> dict[str, str]:
    """A body that cannot be parsed has no fields: its location ends with the place of the character."""
    return {"field": "body", "message": f"the body is not JSON (character {loc[-1]})"}


async def _internal_error(request: Request, _: Exception) -> JSONResponse:
    """A bug. The server logs it with a traceback. This answer bypasses the middleware, so it sets the id header."""
    return _answer(request, 500, "internal error", {HEADER: request.state.request_id})


def _answer(request: Request, status: int, detail: Any, headers: Any) -> JSONResponse:
    return JSONResponse({"detail": detail, "request_id": request.state.request_id}, status, headers)
