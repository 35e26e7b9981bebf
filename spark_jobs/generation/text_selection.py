"""Which text an entity has on a day, as functions of frames: an answer of the ledger, the text it had, or its facts."""

from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.generation.description_kind import Description
from spark_jobs.validation.checks import HOSTILE_FACTS

BUDGET = "budget"  # the fallback reason of an entity that the caps left no room for
KEPT = "kept"  # a row that has an earlier text or an earlier refusal; no refusal has this reason


def of_versions(rows: DataFrame, description: Description) -> DataFrame:
    """Rows of this prompt and model."""
    return rows.where(
        (F.col("prompt_version") == description.prompt_version)
        & (F.col("model_revision") == description.model_revision)
    )


def lasting(before: DataFrame, description: Description) -> DataFrame:
    """Of the descriptions of the last day before, those that hold until the model answers again.

    They are its texts, and facts where it was refused: only those rows of facts say how much was known then.
    """
    is_answer = (F.col("source") == "llm") | F.col("activity").isNotNull()
    return of_versions(before, description).where(is_answer & F.lit(description.is_kept))


def usable(
    inputs: DataFrame, until: DataFrame, later: DataFrame, written: DataFrame | None, description: Description
) -> DataFrame:
    """The answer to each entity: all that is paid for, except what would change a day already written.

    `until` and `later` are the ledger's latest answers up to the day and after it; the former come first. `written` is
    what the day holds. It went without a later answer where it has facts for another reason, or an earlier text or
    refusal: it keeps doing so, since running a day again gives the same result.
    """
    answer = ["generation_key", F.col("description").alias("llm_description"), "refusal_reason"]
    until, later = until.select(*answer), later.select(*answer)
    wanted = inputs.select("entity_id", "generation_key")
    known = wanted.join(until, "generation_key")
    others = wanted.join(later, "generation_key").join(until, "generation_key", "left_anti")
    if written is not None:
        without = _without(inputs, written, description)
        others = (
            others.join(without, "entity_id", "left")
            .where(F.col("instead").isNull() | (F.col("refusal_reason") == F.col("instead")))
            .drop("instead")
        )
    return known.unionByName(others)


def _without(inputs: DataFrame, written: DataFrame, description: Description) -> DataFrame:
    """Entities that a written day has no new text of, with why: they have facts, or an earlier answer is kept."""
    is_same = F.col("written_hash") == F.col("input_hash")
    has_facts = (F.col("source") == "facts") & is_same
    has_text_of_before = (F.col("source") == "llm") & ~is_same & F.lit(description.is_kept)
    # Facts are the day's own also with an earlier refusal: it shows in how much was known of the user then.
    was_refused_before = has_facts & (F.col("activity_then") != F.col("activity"))
    instead = F.when(has_text_of_before | was_refused_before, KEPT).when(has_facts, F.col("fallback_reason"))
    rows = of_versions(written, description).select(
        F.col(description.id).alias("entity_id"),
        "source",
        "fallback_reason",
        F.col("input_hash").alias("written_hash"),
        F.col("activity").alias("activity_then"),
    )
    return inputs.join(rows, "entity_id").select("entity_id", instead.alias("instead")).where("instead IS NOT NULL")


def described(
    inputs: DataFrame, answers: DataFrame, errors: DataFrame, kept: DataFrame, description: Description
) -> DataFrame:
    """One row per entity: the accepted text of `answers`, or the one in `kept`, or the facts and why.

    Why is what happened on the day, in this order: the text was refused, the call failed (`errors`), the facts are not
    shown to a model. Where nothing did, it is the refusal in `kept`, with what was known then, so that growth adds up;
    else the caps left no room. `computed_at` is empty where the text is not a kept one.
    """
    accepted = F.col("llm_description").isNotNull()
    answered_now = accepted | F.col("refusal_reason").isNotNull()
    text = F.coalesce("llm_description", "facts_description")
    happened = F.coalesce("refusal_reason", "error", F.when(F.col("is_withheld"), HOSTILE_FACTS))
    activity = F.when(answered_now & F.lit(description.is_kept), F.col("activity"))
    kept = kept.select(F.col(description.id).alias("entity_id"), F.struct(*kept.columns).alias("kept"))
    known = (
        inputs.join(answers, ["entity_id", "generation_key"], "left")
        .join(errors, "generation_key", "left")
        .join(kept, "entity_id", "left")
    )
    new = F.struct(
        F.col("entity_id").alias(description.id),
        text.alias("description"),
        F.when(accepted, "llm").otherwise("facts").alias("source"),
        F.when(~accepted, F.coalesce(happened, "kept.fallback_reason", F.lit(BUDGET))).alias("fallback_reason"),
        F.lit(description.prompt_version).alias("prompt_version"),
        F.lit(description.model_revision).alias("model_revision"),
        F.col("input_hash"),
        F.coalesce(activity, F.when(happened.isNull(), F.col("kept.activity"))).alias("activity"),
        F.sha2(text, 256).alias("description_hash"),
        F.lit(None).cast("timestamp").alias("computed_at"),
    )
    stays = (F.col("kept.source") == "llm") & ~answered_now
    return known.select(F.when(stays, F.col("kept")).otherwise(new).alias("row")).select("row.*")


def since(rows: DataFrame, before: DataFrame, now: datetime, description: Description) -> DataFrame:
    """The rows with their `computed_at`: that of the same text in `before`, its own, or now."""
    same = [description.id, "description_hash", "source", "prompt_version", "model_revision"]
    earlier = before.select(*same, F.col("computed_at").alias("computed_before"))
    moment = F.coalesce("computed_before", "computed_at", F.lit(now))
    return rows.join(earlier, same, "left").withColumn("computed_at", moment).drop("computed_before")
