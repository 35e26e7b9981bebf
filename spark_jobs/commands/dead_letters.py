"""List or replay dead letters: texts that were refused or never came.

    grasp dead-letters list|replay [--day D] [--reason R] ...

Reads:   both ledgers, the last descriptions
Writes:  with `replay`, a request beside the ledger: the next run generates these texts again

A dead letter is a key whose latest answer was refused, or whose latest call failed. A failed call is repeated by the
next run, until `GRASP_LLM_PARK_AFTER` calls have failed equally because of the prompt. A refused or parked text is not
asked for again until it is replayed or the prompt, the model or the facts change (a user's history must grow by
`GRASP_REDESCRIBE_GROWTH`). If a user's facts have changed by the time of the replay, the
new facts are used.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from grasp import partitions
from grasp.days import day_argument
from grasp.environment import prepare
from grasp.settings import Settings, SettingsError
from grasp.versions import Versions
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.description_kind import ENTITIES, description_table, ledger_table
from spark_jobs.generation.expected_cost import ASSUMED_FACTS_BYTES, MEASURED, usage_per_key
from spark_jobs.generation.ledger_totals import connect_to_ledger
from spark_jobs.generation.replays import replay_files, request_replay
from spark_jobs.models.account import Prices
from spark_jobs.models.chat_completions import REPEATING
from spark_jobs.validation.clean_text import visible_text

DEFAULT_LIMIT = 20  # of `list`
REFUSED, PARKED, QUEUED, PAST = "refused", "parked", "queued", "past"
MAX_ID, MAX_OUTPUT, MAX_INSTEAD = 12, 44, 36  # column widths in characters


class DeadLetterError(ValueError):
    """No dead letter matches; the message says which exist."""


@dataclass(frozen=True)
class DeadLetter:
    """`state`: `queued` is asked for by the next run, `past` has outdated facts.

    `refused` and `parked` ones are not asked for again: the model's text was refused, or its calls keep failing.
    """

    entity: str
    entity_id: str
    generation_key: str
    day: str
    reason: str
    num_attempts: int
    output: str
    instead: str  # the published description
    state: str


# Per key: its latest row and its latest answer. The last key of an entity is about its current facts, unless a later
# description shows other facts.
_QUERY = f"""
WITH keys AS (
    SELECT
        generation_key,
        sum(num_attempts)::BIGINT AS num_attempts,
        arg_max(coalesce(error, ''), generated_at) AS last_error,
        arg_max(coalesce(refusal_reason, ''), generated_at) FILTER (error IS NULL) AS refusal,
        -- Only of refused texts, to save memory: the ledger may have millions of others.
        arg_max(CASE WHEN refusal_reason IS NULL THEN '' ELSE output END, generated_at)
            FILTER (error IS NULL) AS output,
        max(generated_at) FILTER (error IS NULL) AS answered_at,
        arg_max(struct_pack(entity_id, day, asked_at := generated_at), generated_at) AS latest
    FROM ledger
    WHERE prompt_version = $prompt AND model_revision = $model
    GROUP BY generation_key
),
placed AS (
    SELECT *, latest.entity_id AS entity_id, latest.day AS day, coalesce(nullif(refusal, ''), last_error) AS reason,
        row_number() OVER (PARTITION BY latest.entity_id ORDER BY latest.asked_at DESC, generation_key) AS place
    FROM keys
),
repeated AS (
    SELECT generation_key, max(num) AS num_repeated
    FROM (
        SELECT generation_key, error, count(*) AS num
        FROM ledger LEFT JOIN requests USING (generation_key)
        WHERE prompt_version = $prompt AND model_revision = $model
            AND list_contains($repeating, error)
            AND (requested_at IS NULL OR generated_at > requested_at)
        GROUP BY generation_key, error
    )
    GROUP BY generation_key
)
SELECT
    entity_id,
    generation_key,
    day,
    reason,
    num_attempts,
    coalesce(output, '') AS output,
    coalesce(published.source || ': ' || published.description, 'nothing yet') AS instead,
    CASE
        WHEN place > 1 OR ($described >= day AND published.entity_id IS NULL) THEN '{PAST}'
        WHEN answered_at IS NULL OR requests.requested_at > answered_at
            THEN CASE WHEN num_repeated >= $park_after THEN '{PARKED}' ELSE '{QUEUED}' END
        WHEN $described >= day AND published.fallback_reason IS DISTINCT FROM reason THEN '{PAST}'
        ELSE '{REFUSED}'
    END AS state
FROM placed
LEFT JOIN published USING (entity_id)
LEFT JOIN requests USING (generation_key)
LEFT JOIN repeated USING (generation_key)
WHERE reason <> ''
ORDER BY latest.asked_at DESC, entity_id, generation_key
"""  # noqa: S608 - constants of our own


def find_dead_letters(settings: Settings, entity: str) -> list[DeadLetter]:
    """All dead letters of the configured prompt and model, latest first."""
    ledger, described = ledger_table(entity), description_table(entity)
    versions = Versions(settings)
    folder = partitions.table_path(settings.lake, ledger, None)
    connection = connect_to_ledger(folder, ledger)
    requests = [str(file) for file in replay_files(folder)]
    connection.execute("CREATE TABLE requests (generation_key VARCHAR, requested_at TIMESTAMPTZ)")
    if requests:
        query = "SELECT generation_key, max(requested_at) FROM read_parquet($files) GROUP BY generation_key"
        connection.execute(f"INSERT INTO requests {query}", {"files": requests})
    last = partitions.latest_day(settings.lake, described, None)
    connection.execute(
        "CREATE TABLE published (entity_id VARCHAR, source VARCHAR, description VARCHAR, fallback_reason VARCHAR)"
    )
    if last:
        files = str(partitions.partition_path(settings.lake, described, None, last) / "*.parquet")
        columns = f"{entity}_id, source, description, fallback_reason"
        connection.execute(f"INSERT INTO published SELECT {columns} FROM read_parquet($files)", {"files": files})  # noqa: S608
    given = {
        "prompt": versions.prompt(entity),
        "model": versions.llm,
        "described": last or "",
        "repeating": REPEATING,
        "park_after": settings.llm_park_after,
    }
    return [DeadLetter(entity, *row) for row in connection.execute(_QUERY, given).fetchall()]


def select(letters: Sequence[DeadLetter], day: str | None, reason: str | None) -> list[DeadLetter]:
    """Those of this day and reason; raises `DeadLetterError` if none has the reason."""
    found = [letter for letter in letters if day is None or letter.day == day]
    if reason and found and not any(letter.reason == reason for letter in found):
        raise DeadLetterError(f"no dead letter has the reason {reason!r}; there are {count_reasons(found)}")
    return [letter for letter in found if reason is None or letter.reason == reason]


def format_letters(letters: Sequence[DeadLetter], limit: int | None, entities: Sequence[str], model: str) -> str:
    """A table of the first `limit` letters, and the count of each reason by entity. Past letters are only counted."""
    present = [letter for letter in letters if letter.state != PAST]
    shown = present[:limit]
    lines = []
    if shown:
        lines.append(_line("", "day", "reason", "calls", "state", "what the model wrote", "what is published instead"))
    lines += [
        _line(
            f"{each.entity} {_short(each.entity_id, MAX_ID)}",
            each.day,
            each.reason,
            str(each.num_attempts),
            each.state,
            _short(each.output, MAX_OUTPUT) or "-",
            _short(each.instead, MAX_INSTEAD),
        )
        for each in shown
    ]
    if len(shown) < len(present):
        lines.append(f"... and {len(present) - len(shown):,} more (--limit)")
    for entity in entities:
        of_kind = [letter for letter in present if letter.entity == entity]
        lines.append(f"{entity}s: {count_reasons(of_kind) if of_kind else f'none for the model {model}'}")
    if len(present) < len(letters):
        lines.append(f"{len(letters) - len(present):,} more are about outdated facts and are never asked for again")
    return "\n".join(lines)


def count_reasons(letters: Sequence[DeadLetter]) -> str:
    """For example `12 (7 loop, 5 timeout)`."""
    reasons = Counter(letter.reason for letter in letters).most_common()
    return f"{len(letters):,} ({', '.join(f'{num:,} {reason}' for reason, num in reasons)})"


def replay(settings: Settings, letters: Sequence[DeadLetter], limit: int | None) -> str:
    """Request a replay of the refused and parked letters; returns their number and expected cost as text."""
    asked = [letter for letter in letters if letter.state in (REFUSED, PARKED)][:limit]
    states = Counter(letter.state for letter in letters)
    lines = []
    for entity in ENTITIES:
        keys = [letter.generation_key for letter in asked if letter.entity == entity]
        if keys:
            request_replay(partitions.table_path(settings.lake, ledger_table(entity), None), keys, datetime.now(UTC))
            cost = _expected_cost(settings, entity, len(keys))
            lines.append(f"{entity}s: {len(keys):,} will be generated again, {cost}")
    if not asked:
        lines.append("nothing to replay")
    if states[QUEUED]:
        lines.append(f"{states[QUEUED]:,} are asked for by the next run anyway: not replayed")
    if states[PAST]:
        lines.append(f"{states[PAST]:,} are about outdated facts: not replayed")
    if asked:
        lines.append(
            "The next day's refresh asks for them, or `grasp refresh --force` for an earlier day: most urgent first, "
            "within the day's caps."
        )
    return "\n".join(lines)


def _expected_cost(settings: Settings, entity: str, num_keys: int) -> str:
    per_key = usage_per_key(settings, entity, ASSUMED_FACTS_BYTES[entity])
    expected = per_key.expect(num_keys, Prices.of(settings))
    tokens = f"{expected.num_input_tokens:,} tokens in and {expected.num_output_tokens:,} out"
    time = "" if expected.hours is None else f", {60 * expected.hours:,.0f} min"
    origin = "from the ledger's means" if per_key.source == MEASURED else "upper estimate"
    cap = Caps.of(settings, entity).num_keys
    return f"expected {tokens}, cost {expected.cost:,.2f}{time} ({origin}); at most {cap:,} a day (GRASP_LLM_BUDGET)"


def _short(text: str, num_chars: int) -> str:
    """One visible line: texts of a model or a catalogue may contain terminal escape codes."""
    line = " ".join(visible_text(text).split())
    return line if len(line) <= num_chars else f"{line[: num_chars - 3]}..."


def _line(*cells: str) -> str:
    widths = (5 + MAX_ID, 10, 20, 5, 7, MAX_OUTPUT, MAX_INSTEAD)
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _limit(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="grasp dead-letters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", choices=("list", "replay"), help="list dead letters, or generate refused texts again"
    )
    parser.add_argument("--day", type=day_argument, help="only those last requested on this day, YYYY-MM-DD")
    parser.add_argument("--entity", choices=ENTITIES, help="only items or only users")
    parser.add_argument("--reason", help="only this refusal reason or error")
    parser.add_argument(
        "--limit", type=_limit, help=f"at most this many, latest first; default of `list`: {DEFAULT_LIMIT}"
    )
    arguments = parser.parse_args(given)
    try:
        settings = Settings.load()
        entities = [arguments.entity] if arguments.entity else list(ENTITIES)
        found = [letter for each in entities for letter in find_dead_letters(settings, each)]
        letters = select(found, arguments.day, arguments.reason)
        if arguments.command == "replay":
            text = replay(settings, letters, arguments.limit)
        else:
            text = format_letters(letters, arguments.limit or DEFAULT_LIMIT, entities, Versions(settings).llm)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    prepare()
    main()
