"""What went wrong in Spark's workers, without Spark's pages of context."""

from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JJavaError
from pyspark.errors import PythonException


@contextmanager
def worker_errors(kind: type[ValueError]) -> Iterator[None]:
    """Raise as `kind` what a worker raised, by its own last words, or that Spark gave up: workers die without any."""
    try:
        yield
    except PythonException as error:
        causes = [line.split("Error: ", 1)[1] for line in str(error).splitlines() if "Error: " in line]
        raise kind(causes[-1] if causes else f"a Spark worker failed: {error}") from error
    except Py4JJavaError as error:
        why = error.java_exception.toString().splitlines()[0]
        raise kind(f"Spark gave up, as on a worker that dies again and again; what was done is kept: {why}") from error
