"""Record the classes that Spark loads, so that the Java machine of a job maps them instead of reading 300 jars.

A job then starts in two thirds of the processor time. The record is made once for each pair of Java and PySpark, 180 MB
inside the virtual environment. Without it, jobs work as well, only slower.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from grasp.environment import IS_SUBMITTED, SPARK_CLASSES


def typical_job(folder: str) -> None:
    """What most jobs do: read and write Parquet and text, window, join, aggregate, and hand rows to Python."""
    from pyspark.sql import SparkSession, Window
    from pyspark.sql import functions as F

    spark = SparkSession.builder.master("local[2]").appName("spark_classes").getOrCreate()
    numbers = spark.range(1000).selectExpr("id", "id % 7 AS part", "string(id) AS text", "array(id, 1) AS list")
    numbers.withColumn("moment", F.timestamp_seconds("id")).write.partitionBy("part").parquet(f"{folder}/numbers")
    read = spark.read.parquet(f"{folder}/numbers").cache()
    newest = Window.partitionBy("part").orderBy(F.desc("moment"), "id")
    ranked = read.withColumn("rank", F.row_number().over(newest)).where(F.col("rank") < 100)
    texts = F.array_sort(F.collect_list(F.struct("rank", "text")))
    counted = ranked.groupBy("part").agg(
        F.count_distinct("text").alias("num_texts"),
        F.sum(F.xxhash64("id", "list").cast("decimal(38,0)")).alias("hash"),
        F.slice(texts.getField("text"), 1, 3).alias("first"),
    )
    few = spark.createDataFrame([(1, "one", {"a": "b"})], "part bigint, name string, facts map<string,string>")
    joined = ranked.join(counted, "part").join(few, "part", "left").join(read.where("id < 9"), "id", "left_anti")
    rows = joined.mapInPandas(lambda batches: (batch[["id", "rank"]] for batch in batches), "id long, rank long")
    rows.unionByName(few.selectExpr("part AS id", "1L AS rank")).dropDuplicates(["id"]).toPandas()
    record = F.struct("name", F.map_entries("facts"), F.coalesce("name", "text"))
    lines = joined.select(F.to_json(record).alias("value"))
    lines.repartition(2).write.text(f"{folder}/lines")
    spark.read.schema("name string").json(f"{folder}/lines").groupBy("name").count().collect()
    list(spark.read.text(f"{folder}/lines").select(F.from_json("value", "name string")).toLocalIterator())
    spark.stop()


def record(archive: Path) -> None:
    """Run the typical job and keep what it loaded; raises `CalledProcessError` or `OSError` where Java cannot."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / archive.name
        options = f'{os.environ["SPARK_SUBMIT_OPTS"]} "-XX:ArchiveClassesAtExit={made}" -Xlog:disable'
        subprocess.run(
            ["spark-submit", __file__, f"{folder}/data"],
            env={**os.environ, "SPARK_SUBMIT_OPTS": options},
            check=True,
            capture_output=True,
        )
        partial = archive.with_suffix(".partial")  # beside the archive: a rename is whole or does not happen
        shutil.copyfile(made, partial)
        partial.replace(archive)


def main() -> None:
    if os.environ.get("SPARK_CONF_DIR"):
        print("[grasp] SPARK_CONF_DIR is set: Spark starts as it says, without recorded classes", flush=True)
        return
    java = f"{os.environ['JAVA_HOME']}/bin/java" if os.environ.get("JAVA_HOME") else "java"
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    stamp, content = SPARK_CLASSES.with_suffix(".txt"), f"{shown}PySpark {version('pyspark')}\n"
    if SPARK_CLASSES.exists() and stamp.exists() and stamp.read_text() == content:
        return
    print("[grasp] recording Spark's classes, so that jobs start faster: half a minute", flush=True)
    SPARK_CLASSES.unlink(missing_ok=True)
    try:
        record(SPARK_CLASSES)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"[grasp] they could not be recorded, Spark starts slower: {error}", flush=True)
        return
    stamp.write_text(content)


if __name__ == "__main__":
    if IS_SUBMITTED:
        typical_job(sys.argv[1])
    else:
        main()
