"""Select the text of each entity on a day: an answer from the ledger, its earlier text, or its facts."""

from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.generation.description_kind import DescriptionKind
from spark_jobs.validation.checks import HOSTILE_FACTS

BUDGET = "budget"  # fallback reason of an entity that the caps did not allow
KEPT = "kept"  # marks a row with an earlier text or refusal; not a refusal reason


def of_prompt_and_model(rows: DataFrame, kind: DescriptionKind) -> DataFrame:
    """Rows of this prompt and model."""
    return rows.where(
        (F.col("prompt_version") == kind.prompt_version) & (F.col("model_revision") == kind.model_revision)
    )


def kept_descriptions(before: DataFrame, kind: DescriptionKind) -> DataFrame:
    """The descriptions of the last day before that are kept until the model answers again.

    They are the model's texts, and the rows of facts that stand for a refusal: these have an `activity`.
    """
    is_answer = (F.col("source") == "llm") | F.col("activity").isNotNull()
    return of_prompt_and_model(before, kind).where(is_answer & F.lit(kind.is_kept))


def select_answers(
    inputs: DataFrame, until: DataFrame, later: DataFrame, written: DataFrame | None, kind: DescriptionKind
) -> DataFrame:
    """The answer for each entity: every known one, except those that would change a day already written.

    `until` and `later` are the ledger's latest answers up to the day and after it; `until` takes precedence. What a
    batch of the day brings later belongs to `until`: the day is then as if it had come in time. `written` is what the
    day already holds. Apart from that, running a day again must give the same result, so a later answer is not used if

    - the day has the entity's facts, for a reason other than the later answer's refusal reason, or
    - the day has an earlier text or an earlier refusal of the entity.
    """
    answer = ["generation_key", F.col("description").alias("llm_description"), "refusal_reason"]
    until, later = until.select(*answer), later.select(*answer)
    wanted = inputs.select("entity_id", "generation_key")
    known = wanted.join(until, "generation_key")
    others = wanted.join(later, "generation_key").join(until, "generation_key", "left_anti")
    if written is not None:
        without = _without_new_text(inputs, written, kind)
        others = (
            others.join(without, "entity_id", "left")
            .where(F.col("instead").isNull() | (F.col("refusal_reason") == F.col("instead")))
            .drop("instead")
        )
    return known.unionByName(others)


def _without_new_text(inputs: DataFrame, written: DataFrame, kind: DescriptionKind) -> DataFrame:
    """Entities without a new text on a written day, with the reason: a fallback reason or `KEPT`."""
    is_same = F.col("written_hash") == F.col("input_hash")
    has_facts = (F.col("source") == "facts") & is_same
    has_text_of_before = (F.col("source") == "llm") & ~is_same & F.lit(kind.is_kept)
    # Facts that stand for an earlier refusal have the activity of that time.
    was_refused_before = has_facts & (F.col("activity_then") != F.col("activity"))
    instead = F.when(has_text_of_before | was_refused_before, KEPT).when(has_facts, F.col("fallback_reason"))
    rows = of_prompt_and_model(written, kind).select(
        F.col(kind.id).alias("entity_id"),
        "source",
        "fallback_reason",
        F.col("input_hash").alias("written_hash"),
        F.col("activity").alias("activity_then"),
    )
    return inputs.join(rows, "entity_id").select("entity_id", instead.alias("instead")).where("instead IS NOT NULL")


def description_rows(
    inputs: DataFrame, answers: DataFrame, errors: DataFrame, kept: DataFrame, kind: DescriptionKind
) -> DataFrame:
    """One row per entity: the accepted text in `answers`, else that in `kept`, else its facts with a fallback reason.

    The fallback reason is the first that applies:

    - the refusal reason of the text in `answers`,
    - the error of the failed call in `errors`,
    - `hostile_facts`, if the facts are withheld from the model,
    - the refusal in `kept`, together with its `activity`, so that growth is counted from that time,
    - `budget`: the caps left no room.

    `computed_at` is null unless the row comes from `kept`.
    """
    accepted = F.col("llm_description").isNotNull()
    answered_now = accepted | F.col("refusal_reason").isNotNull()
    text = F.coalesce("llm_description", "facts_description")
    happened = F.coalesce("refusal_reason", "error", F.when(F.col("is_withheld"), HOSTILE_FACTS))
    activity = F.when(answered_now & F.lit(kind.is_kept), F.col("activity"))
    kept = kept.select(F.col(kind.id).alias("entity_id"), F.struct(*kept.columns).alias("kept"))
    known = (
        inputs.join(answers, ["entity_id", "generation_key"], "left")
        .join(errors, "generation_key", "left")
        .join(kept, "entity_id", "left")
    )
    new = F.struct(
        F.col("entity_id").alias(kind.id),
        text.alias("description"),
        F.when(accepted, "llm").otherwise("facts").alias("source"),
        F.when(~accepted, F.coalesce(happened, "kept.fallback_reason", F.lit(BUDGET))).alias("fallback_reason"),
        F.lit(kind.prompt_version).alias("prompt_version"),
        F.lit(kind.model_revision).alias("model_revision"),
        F.col("input_hash"),
        F.coalesce(activity, F.when(happened.isNull(), F.col("kept.activity"))).alias("activity"),
        F.sha2(text, 256).alias("description_hash"),
        F.lit(None).cast("timestamp").alias("computed_at"),
    )
    stays = (F.col("kept.source") == "llm") & ~answered_now
    return known.select(F.when(stays, F.col("kept")).otherwise(new).alias("row")).select("row.*")


def with_computed_at(rows: DataFrame, before: DataFrame, now: datetime, kind: DescriptionKind) -> DataFrame:
    """Set `computed_at`: that of the same text in `before`, else the row's own, else now."""
    same = [kind.id, "description_hash", "source", "prompt_version", "model_revision"]
    earlier = before.select(*same, F.col("computed_at").alias("computed_before"))
    moment = F.coalesce("computed_before", "computed_at", F.lit(now))
    return rows.join(earlier, same, "left").withColumn("computed_at", moment).drop("computed_before")
