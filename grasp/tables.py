"""Every table, defined once: its key, its columns with types and meaning, and how it is partitioned.

All tables are parquet below `GRASP_LAKE`. A plain table lies at `<name>/day=<day>`, a versioned one at
`<name>/version=<version>/day=<day>`. So vectors of two encoders, or features of two definitions, are never read
together. *Delta* tables hold what happened on a day. All others hold the state at the end of a day.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    name: str
    type: str  # Spark SQL type
    meaning: str
    may_be_null: bool = False


@dataclass(frozen=True)
class Table:
    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    meaning: str
    versioned_by: str | None = None  # None, "encoder", "embedding" or "feature": which version partitions it
    delta: bool = False  # True: one day's events; False: the state at the end of the day
    appended: bool = False  # True: any process adds files during the day, so there is no content file

    @property
    def ddl(self) -> str:
        """The schema as Spark reads it, for example `user_id string, age int`."""
        return ", ".join(f"{column.name} {column.type}" for column in self.columns)

    @property
    def required(self) -> tuple[str, ...]:
        """Columns in which every row has a value."""
        return tuple(column.name for column in self.columns if not column.may_be_null)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


def _columns(*rows: tuple[str, str, str] | tuple[str, str, str, bool]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


MAY_BE_NULL = True


COMPUTED_AT = ("computed_at", "timestamp", "when the row's content last changed, by the system's clock")

INTERACTIONS = Table(
    "interactions",
    ("user_id", "event_time", "row_number"),
    _columns(
        ("user_id", "string", "the user"),
        ("item_id", "string", "the item"),
        ("event_time", "timestamp", "when it happened, UTC"),
        ("row_number", "bigint", "position in the source; orders equal times"),
    ),
    "What users did, one partition per event day.",
    delta=True,
)

ITEMS = Table(
    "items",
    ("item_id",),
    _columns(
        ("item_id", "string", "key"),
        ("title", "string", "name shown to people; may be empty"),
        ("attributes", "map<string,string>", "further facts by name, lists joined with ', '"),
    ),
    "Every item known by the day, withdrawn ones included.",
)

USERS = Table(
    "users",
    ("user_id",),
    _columns(
        ("user_id", "string", "key"),
        ("attributes", "map<string,string>", "known facts by name, such as age or occupation; may be empty"),
    ),
    "Users with at least one interaction up to the end of the day.",
)

WITHDRAWN_ITEMS = Table(
    "withdrawn_items",
    ("item_id",),
    _columns(
        ("item_id", "string", "key"),
        ("withdrawn_on", "string", "the first day whose source no longer held the item"),
    ),
    "Items that the source no longer holds: still known, with their last facts, but never recommended.",
)

QUARANTINE = Table(
    "quarantine",
    ("source_file", "source_row"),
    _columns(
        ("source_table", "string", "interactions, items or users"),
        ("source_file", "string", "file of the row"),
        ("source_row", "bigint", "1-based data row in that file"),
        ("reason", "string", "why the row was refused"),
        ("record", "string", "the row as JSON"),
    ),
    "Rows that ingestion refused on the day, with the reason.",
)


def _description(entity: str) -> Table:
    return Table(
        f"{entity}_description",
        (f"{entity}_id",),
        _columns(
            (f"{entity}_id", "string", "key"),
            ("description", "string", "the text that is encoded"),
            ("source", "string", "llm, or facts for a text built from facts"),
            (
                "fallback_reason",
                "string",
                "why facts were used: the validator's reason (of this day or of the user's last answer), "
                "hostile_facts, the error of the call, or budget",
                MAY_BE_NULL,
            ),
            ("prompt_version", "string", "version of the prompt and of the facts template"),
            ("model_revision", "string", "language model and revision that wrote it or was to write it"),
            ("input_hash", "string", "sha256 of the canonical facts"),
            (
                "activity",
                "bigint",
                "a user's interactions when the language model last answered, accepted or refused; null for all others",
                MAY_BE_NULL,
            ),
            ("description_hash", "string", "sha256 of the description"),
            COMPUTED_AT,
        ),
        f"One description per {entity}, at the end of the day.",
    )


def _generation(entity: str) -> Table:
    return Table(
        f"{entity}_generation",
        ("generation_key", "generated_at"),
        _columns(
            ("generation_key", "string", "sha256 of prompt version, model revision, decoding and canonical input"),
            (f"{entity}_id", "string", f"the {entity} that was described"),
            ("prompt_version", "string", "version of the prompt"),
            ("model_revision", "string", "language model and revision"),
            ("output", "string", "the model's raw answer; empty if no call succeeded", MAY_BE_NULL),
            ("description", "string", "the cleaned text; null if it was refused", MAY_BE_NULL),
            ("refusal_reason", "string", "the validator's reason; null if accepted or never answered", MAY_BE_NULL),
            ("error", "string", "why no call succeeded, such as timeout; null if the model answered", MAY_BE_NULL),
            ("is_repair", "boolean", "true if the model was told what was wrong with its first text"),
            ("num_attempts", "int", "calls made, failed ones included"),
            ("num_input_tokens", "int", "tokens of the prompt"),
            ("num_output_tokens", "int", "tokens written"),
            ("cost", "double", "price of the tokens, in the currency of GRASP_LLM_INPUT_PRICE"),
            ("seconds", "double", "latency; for a model in process, the share of the batch's wall time"),
            ("generated_at", "timestamp", "when the answer came, by the wall clock; the latest row of a key counts"),
        ),
        f"Ledger of every paid generation for {entity}s, refused ones too. Nothing is paid for twice.",
        delta=True,
    )


GENERATION_METRICS = Table(
    "generation_metrics",
    ("entity", "prompt_version", "model_revision"),
    _columns(
        ("entity", "string", "item or user"),
        ("prompt_version", "string", "version of the prompt"),
        ("model_revision", "string", "language model and revision"),
        ("num_entities", "bigint", "items or users of the day"),
        ("num_cache_hits", "bigint", "of these, how many had an answer of another day for the same facts: no cost"),
        (
            "num_kept",
            "bigint",
            "users who keep an earlier accepted text: too few new interactions, or no room below the caps",
        ),
        ("num_described", "bigint", "entities with a text of the language model: new, from the ledger or kept"),
        ("num_answers", "bigint", "texts answered on the day; entities with equal facts share one"),
        ("num_accepted", "bigint", "of these, how many were accepted, by the latest answer of the day"),
        ("num_refused", "bigint", "of these, how many were refused, by the latest answer of the day"),
        ("num_repairs", "bigint", "refused texts that the model was asked to correct"),
        ("num_repaired", "bigint", "of these, accepted"),
        ("num_unanswered", "bigint", "texts for which every call of the day failed; the next run asks again"),
        ("num_calls", "bigint", "calls made, failed ones included"),
        ("num_failed_calls", "bigint", "calls that brought no text"),
        ("num_input_tokens", "bigint", "tokens of prompts"),
        ("num_output_tokens", "bigint", "tokens written"),
        ("cost", "double", "price of the tokens, in the currency of GRASP_LLM_INPUT_PRICE"),
        ("seconds", "double", "sum of all calls' latencies"),
        ("wall_seconds", "double", "time in which answers came, without pauses of more than ten minutes"),
        ("answers_per_minute", "double", "texts answered per minute of that time; null if there was none", MAY_BE_NULL),
        ("reasons", "map<string,bigint>", "refused and unanswered texts by refusal reason or error"),
        ("asked_by_history", "map<string,bigint>", "texts asked for, by number of interactions, such as 5-9"),
        ("failed_by_history", "map<string,bigint>", "of these, refused and unanswered ones"),
        COMPUTED_AT,
    ),
    "Cost and result of describing on the day, by kind, prompt and model.",
    delta=True,
)


TEXT_EMBEDDING = Table(
    "text_embedding",
    ("description_hash",),
    _columns(
        ("description_hash", "string", "sha256 of the text"),
        ("semantic_embedding", "array<float>", "its unit vector"),
        ("encoded_at", "timestamp", "when it was encoded, by the wall clock"),
    ),
    "Vector of every text that this encoder has encoded. No text is encoded twice.",
    versioned_by="encoder",
    delta=True,
)


def _embedding(entity: str) -> Table:
    return Table(
        f"{entity}_embedding",
        (f"{entity}_id",),
        _columns(
            (f"{entity}_id", "string", "key"),
            ("semantic_embedding", "array<float>", "unit vector of the description"),
            ("description_hash", "string", "which description was encoded"),
            COMPUTED_AT,
        ),
        f"Semantic embedding of every {entity}.",
        versioned_by="embedding",
    )


def _neighbours(entity: str) -> Table:
    return Table(
        f"{entity}_neighbours",
        (f"{entity}_id", "rank"),
        _columns(
            (f"{entity}_id", "string", "key"),
            ("neighbour_id", "string", "the neighbour, never the entity itself"),
            ("similarity", "float", "cosine of the two semantic embeddings"),
            ("rank", "int", "1 is nearest; ties by id"),
        ),
        f"The k nearest {entity}s by semantic embedding.",
        versioned_by="feature",
    )


def _neighbour_features(entity: str) -> Table:
    return Table(
        f"{entity}_neighbour_features",
        (f"{entity}_id",),
        _columns(
            (f"{entity}_id", "string", "key"),
            ("neighbour_embedding", "array<float>", "mean of the neighbours' semantic embeddings"),
            ("neighbour_ids", "array<string>", "neighbours, nearest first"),
            ("neighbour_similarities", "array<float>", "their similarities, same order"),
        ),
        f"Each {entity}'s neighbours summarised as one vector.",
        versioned_by="feature",
    )


TAKER_DAYS = (1, 3, 7, 14, 30)  # windows in which an item's takers are counted
MAX_NEIGHBOUR_ITEMS = 200
AT_MOST = f"at most {MAX_NEIGHBOUR_ITEMS}"

MOMENTS = Table(
    "moments",
    ("user_id", "event_time", "row_number"),
    _columns(
        ("user_id", "string", "who took the item"),
        ("event_time", "timestamp", "when, UTC"),
        ("row_number", "bigint", "position in the source; orders equal times"),
        ("item_id", "string", "the item that was taken"),
        ("history_item_ids", "array<string>", "the last items before it, at most 8, newest first"),
    ),
    "What users had taken before each interaction of the day, with the item taken next.",
    delta=True,
)

USER_NEIGHBOUR_ITEMS = Table(
    "user_neighbour_items",
    ("user_id",),
    _columns(
        ("user_id", "string", "key"),
        ("neighbour_item_ids", "array<string>", f"items that similar moments vote for, most votes first, {AT_MOST}"),
        ("neighbour_item_weights", "array<float>", "share of all votes that each of them has, same order"),
    ),
    "What users with similar recent histories took lately; only users who were active lately have a row.",
    versioned_by="feature",
)


def _features(entity: str, own: tuple[tuple[str, str, str], ...]) -> Table:
    return Table(
        f"{entity}_features",
        (f"{entity}_id",),
        _columns(
            (f"{entity}_id", "string", "key"),
            ("event_timestamp", "timestamp", "last second of the day; the row knows nothing after the day"),
            *own,
            ("is_tail", "bigint", "1 in the tail popularity group, 0 in the head"),
            ("semantic_embedding", "array<float>", "unit vector of the description"),
            ("neighbour_embedding", "array<float>", "mean of the neighbours' semantic embeddings"),
            ("neighbour_ids", "array<string>", "neighbours, nearest first"),
            ("neighbour_similarities", "array<float>", "their similarities, same order"),
            ("description", "string", "the text that was encoded"),
            ("source", "string", "llm or facts"),
            ("prompt_version", "string", "version of the prompt"),
            ("model_revision", "string", "language model and revision"),
            ("embedding_version", "string", "encoder, revision, pooling and description version"),
            ("feature_version", "string", "embedding version and how neighbours are aggregated"),
            COMPUTED_AT,
        ),
        f"Everything the ranker and analysts read about each {entity}; the offline side of the Feast view.",
        versioned_by="feature",
    )


ITEM_DESCRIPTION, USER_DESCRIPTION = _description("item"), _description("user")
ITEM_GENERATION, USER_GENERATION = _generation("item"), _generation("user")
ITEM_EMBEDDING, USER_EMBEDDING = _embedding("item"), _embedding("user")
ITEM_NEIGHBOURS, USER_NEIGHBOURS = _neighbours("item"), _neighbours("user")
ITEM_NEIGHBOUR_FEATURES, USER_NEIGHBOUR_FEATURES = _neighbour_features("item"), _neighbour_features("user")
ITEM_FEATURES = _features(
    "item",
    (
        ("title", "string", "name shown to people"),
        ("popularity", "bigint", "distinct users up to the end of the day"),
        *(
            (f"takers_{days}d", "bigint", f"distinct users of the last {days} days, the day itself included")
            for days in TAKER_DAYS
        ),
        ("first_seen_day", "string", "day of the first interaction; without one, first day in the catalogue"),
    ),
)
USER_FEATURES = _features(
    "user",
    (
        ("sequence", "array<string>", "the last 100 item ids up to the end of the day, oldest first"),
        (
            "sequence_times",
            "array<bigint>",
            "time of each item of sequence, in whole seconds since 1970 UTC",
        ),
        (
            "earlier_item_ids",
            "array<string>",
            "ids of the items before those of sequence, each once and not those of sequence; with sequence, all items",
        ),
        ("num_interactions", "bigint", "interactions up to the end of the day"),
        ("gap_days", "bigint", "days from the last interaction to the day; 0 if it was on the day itself"),
        ("neighbour_item_ids", "array<string>", f"what similar users took lately, most votes first, {AT_MOST}"),
        ("neighbour_item_weights", "array<float>", "share of all votes that each of them has, same order"),
    ),
)

SERVED_REQUESTS = Table(
    "served_requests",
    ("request_id",),
    _columns(
        ("request_id", "string", "id of the answer; outcomes refer to it"),
        ("served_at", "timestamp", "when, by the system's clock"),
        ("user_id", "string", "the user of the request"),
        ("release_id", "string", "the release of the answer"),
        ("model", "string", "its model; null for a release that recommends popular items", MAY_BE_NULL),
        ("experiment", "string", "the running experiment; null without one", MAY_BE_NULL),
        ("bucket", "string", "control or candidate; null without an experiment", MAY_BE_NULL),
        ("fallback", "string", "name of the fallback; null if none was needed", MAY_BE_NULL),
        ("store_problem", "string", "store_timeout, store_error or store_empty, if one", MAY_BE_NULL),
        ("feature_day", "string", "day of the features that the answer used", MAY_BE_NULL),
        ("feature_age_hours", "double", "their age", MAY_BE_NULL),
        ("recent_item_ids", "array<string>", "items of the current visit, named by the request, oldest first"),
        ("votes_from", "string", "where votes came from: moments or stored; null without votes", MAY_BE_NULL),
        ("item_ids", "array<string>", "the recommended items, best first"),
        ("scores", "array<float>", "their scores; numbers of users where popular items were the fallback"),
    ),
    "Answers that users saw on the day (impressions), without requests of analysts.",
    delta=True,
    appended=True,
)

OUTCOMES = Table(
    "outcomes",
    ("request_id", "item_id", "kind"),
    _columns(
        ("request_id", "string", "the answer that showed the item"),
        ("item_id", "string", "the item"),
        ("kind", "string", "click or purchase"),
        ("told_at", "timestamp", "when the service was told, by the system's clock; repetitions are rows too"),
    ),
    "Clicks and purchases on served answers, by the day the service was told.",
    delta=True,
    appended=True,
)

FEATURE_VIEWS = (USER_FEATURES, ITEM_FEATURES)  # registered in Feast, under the tables' names
ONLINE_VIEWS = (USER_FEATURES,)  # of these; a ranker holds its release's items in memory, so nobody reads them online

MAX_ID_BYTES = 512  # of a user or item id in UTF-8, from the source to Milvus and the HTTP API
MAX_SEQUENCE_LENGTH = 100  # latest items of a user that features and ranker use

ALL = (
    INTERACTIONS,
    ITEMS,
    WITHDRAWN_ITEMS,
    USERS,
    QUARANTINE,
    ITEM_GENERATION,
    USER_GENERATION,
    GENERATION_METRICS,
    ITEM_DESCRIPTION,
    USER_DESCRIPTION,
    TEXT_EMBEDDING,
    ITEM_EMBEDDING,
    USER_EMBEDDING,
    ITEM_NEIGHBOURS,
    USER_NEIGHBOURS,
    ITEM_NEIGHBOUR_FEATURES,
    USER_NEIGHBOUR_FEATURES,
    MOMENTS,
    USER_NEIGHBOUR_ITEMS,
    ITEM_FEATURES,
    USER_FEATURES,
    SERVED_REQUESTS,
    OUTCOMES,
)
