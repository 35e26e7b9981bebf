"""How errors look: what is wrong, never what was sent, and the id of the request."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.http.request_context import HEADER
from serving.schemas import Problem, WrongRequest

# What every endpoint may answer instead; an endpoint adds its own.
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request's body is not text in UTF-8."},
    401: {"model": Problem, "description": "No known token. Only where tokens are configured."},
    403: {"model": Problem, "description": "The token's role may not do this."},
    404: {"model": Problem, "description": "There is no such item, user, release or address."},
    408: {"model": Problem, "description": "The request's body did not come in time."},
    413: {"model": Problem, "description": "The request's body is too large."},
    422: {"model": WrongRequest, "description": "Mistakes of the request, by field."},
    503: {"model": Problem, "description": "Nothing is loaded, or what this needs is down; the detail says what."},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these errors."""
    return {status: ERRORS[status] for status in statuses}


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    app.add_exception_handler(HTTPException, _say_why)
    app.add_exception_handler(Exception, _failed)


async def _say_why(request: Request, error: Exception) -> JSONResponse:
    status, detail, headers = 500, "", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, str(error.detail), error.headers
    return _answer(request, status, detail, headers)


async def _say_what_is_wrong(request: Request, error: Exception) -> JSONResponse:
    """Field and message of each mistake; the input is not repeated, it may be large or not even text."""
    mistakes = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"field": ".".join(str(part) for part in each["loc"]), "message": str(each["msg"])} for each in mistakes]
    text = [{key: value.encode(errors="replace").decode() for key, value in each.items()} for each in detail]
    return _answer(request, 422, text, None)


async def _failed(request: Request, _: Exception) -> JSONResponse:
    """A mistake of ours. The server logs it with its traceback; the answer leaves the middleware behind."""
    return _answer(request, 500, "internal error", {HEADER: request.state.request_id})


def _answer(request: Request, status: int, detail: Any, headers: Any) -> JSONResponse:
    return JSONResponse({"detail": detail, "request_id": request.state.request_id}, status, headers)
