"""Errors of Spark workers, without Spark's pages of context."""

from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PythonException


@contextmanager
def worker_errors(kind: type[ValueError]) -> Iterator[None]:
    """Raise `kind` with the message of the worker's exception, or with Spark's reason if a worker died."""
    try:
        yield
    except PythonException as error:
        causes = [line.split("Error: ", 1)[1] for line in str(error).splitlines() if "Error: " in line]
        raise kind(causes[-1] if causes else f"a Spark worker failed: {error}") from error
    except Py4JJavaError as error:
        why = error.java_exception.toString().splitlines()[0]
        raise kind(
            f"Spark gave up, for example because a worker died repeatedly; finished work is kept: {why}"
        ) from error
