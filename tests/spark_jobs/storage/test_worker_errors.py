"""A failed job reports one line with the cause, without Spark's context."""

import pytest
from py4j.protocol import Py4JJavaError

from spark_jobs.generation.live_generation import GenerationError
from spark_jobs.storage.worker_errors import worker_errors


class Failure:
    """An exception of the JVM, as far as Python sees it."""

    _target_id = "o1"

    def toString(self):  # noqa: N802 - Java's name
        return "org.apache.spark.SparkException: Job aborted: Task 0 failed 4 times\n\tat java.base/Thread.run"


def test_a_job_that_spark_gave_up_is_reported_in_one_line():
    with pytest.raises(GenerationError) as raised, worker_errors(GenerationError):
        raise Py4JJavaError("An error occurred", Failure())

    assert "finished work is kept" in str(raised.value)
    assert str(raised.value).endswith("Task 0 failed 4 times")


def test_other_errors_are_left_alone():
    with pytest.raises(KeyError), worker_errors(GenerationError):
        raise KeyError("ours")
