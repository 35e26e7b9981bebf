"""Texts the model was asked for in vain.

    python -m spark_jobs.commands.dead_letters list|replay [--day D] [--reason R] ...

Reads:   both ledgers, the last descriptions
Writes:  with `replay` a request beside the ledger: the next run that meets these facts generates them again

A dead letter is a key whose latest answer was refused, or whose latest call failed. The former stays as it is until
it is replayed, or the prompt, the model or the facts change, a user's by `GRASP_REDESCRIBE_GROWTH`; the latter is asked
for again by the next run anyway. A user who has other facts when the replay comes is asked about with those.
Needs no Spark.
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
from spark_jobs.generation import replays
from spark_jobs.generation.budget import Caps, Estimate
from spark_jobs.generation.description_kind import ENTITIES, ledger_of, table_of
from spark_jobs.generation.expected_cost import ASSUMED_FACTS_BYTES, MEASURED, Rates
from spark_jobs.generation.ledger_totals import account, connect
from spark_jobs.generation.live_generation import Prices
from spark_jobs.validation.clean_text import visible_text

SHOWN = 20  # by `list`, unless told
REFUSED, QUEUED, PAST = "refused", "queued", "past"
MAX_ID, MAX_OUTPUT, MAX_INSTEAD = 12, 44, 36  # characters of a line


class DeadLetterError(ValueError):
    """What was asked for is not there; the message says what is."""


@dataclass(frozen=True)
class DeadLetter:
    """`state` says what becomes of it: refused stays, queued is asked for again by the next run, past is of facts that
    nobody has any more.
    """

    entity: str
    entity_id: str
    generation_key: str
    day: str
    reason: str
    num_attempts: int
    output: str
    instead: str  # what is published
    state: str


# The latest of a key's rows of any kind, and its latest answer. The last key of an entity is about the facts it has
# now, unless a description was written since that says otherwise.
_QUERY = f"""
WITH keys AS (
    SELECT
        generation_key,
        sum(num_attempts)::BIGINT AS num_attempts,
        arg_max(coalesce(error, ''), generated_at) AS last_error,
        arg_max(coalesce(refusal_reason, ''), generated_at) FILTER (error IS NULL) AS refusal,
        -- Of refused ones alone: the ledger has millions of others, and all keys are in memory at once.
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
        WHEN answered_at IS NULL OR requests.requested_at > answered_at THEN '{QUEUED}'
        WHEN $described >= day AND published.fallback_reason IS DISTINCT FROM reason THEN '{PAST}'
        ELSE '{REFUSED}'
    END AS state
FROM placed
LEFT JOIN published USING (entity_id)
LEFT JOIN requests USING (generation_key)
WHERE reason <> ''
ORDER BY latest.asked_at DESC, entity_id, generation_key
"""  # noqa: S608 - constants of our own


def find(settings: Settings, entity: str) -> list[DeadLetter]:
    """Every dead letter of the current prompt and model, the latest first."""
    ledger, described = ledger_of(entity), table_of(entity)
    versions = Versions(settings)
    folder = partitions.table_path(settings.lake, ledger, None)
    connection = connect(folder, ledger)
    requests = [str(file) for file in replays.files(folder)]
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
    same = {"prompt": versions.prompt(entity), "model": versions.llm, "described": last or ""}
    return [DeadLetter(entity, *row) for row in connection.execute(_QUERY, same).fetchall()]


def chosen(letters: Sequence[DeadLetter], day: str | None, reason: str | None) -> list[DeadLetter]:
    """Those last asked for on the day, for the reason. Raises `DeadLetterError` for a reason that none has."""
    found = [letter for letter in letters if day is None or letter.day == day]
    if reason and found and not any(letter.reason == reason for letter in found):
        raise DeadLetterError(f"no dead letter has the reason {reason!r}; there are {counted(found)}")
    return [letter for letter in found if reason is None or letter.reason == reason]


def listed(letters: Sequence[DeadLetter], limit: int | None, entities: Sequence[str], model: str) -> str:
    """A table of the first ones and how often each reason occurs, by entity. Past ones are only counted."""
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
        lines.append(f"{entity}s: {counted(of_kind) if of_kind else f'none of the model {model}'}")
    if len(present) < len(letters):
        lines.append(f"{len(letters) - len(present):,} more are of facts that nobody has any more: never asked again")
    return "\n".join(lines)


def counted(letters: Sequence[DeadLetter]) -> str:
    """For example `12 (7 loop, 5 timeout)`."""
    reasons = Counter(letter.reason for letter in letters).most_common()
    return f"{len(letters):,} ({', '.join(f'{num:,} {reason}' for reason, num in reasons)})"


def replay(settings: Settings, letters: Sequence[DeadLetter], limit: int | None) -> str:
    """Have the refused ones generated again; says how many, what that will cost, and what still limits it."""
    asked = [letter for letter in letters if letter.state == REFUSED][:limit]
    states = Counter(letter.state for letter in letters)
    lines = []
    for entity in ENTITIES:
        keys = [letter.generation_key for letter in asked if letter.entity == entity]
        if keys:
            replays.request(partitions.table_path(settings.lake, ledger_of(entity), None), keys, datetime.now(UTC))
            lines.append(f"{entity}s: {len(keys):,} will be generated again, {_price(settings, entity, len(keys))}")
    if not asked:
        lines.append("nothing to replay")
    if states[QUEUED]:
        lines.append(f"{states[QUEUED]:,} are asked for again by the next run anyway: left alone")
    if states[PAST]:
        lines.append(f"{states[PAST]:,} are of facts that nobody has any more: left alone")
    if asked:
        lines.append(
            "The next day's refresh asks for them, or a day that is run again with `force`. The day's caps still "
            "apply, the most urgent first."
        )
    return "\n".join(lines)


def _price(settings: Settings, entity: str, num_keys: int) -> str:
    ledger, versions, estimate = ledger_of(entity), Versions(settings), Estimate.of(settings, entity)
    folder = partitions.table_path(settings.lake, ledger, None)
    rates = Rates.of(
        account(folder, ledger, versions.prompt(entity), versions.llm), estimate, ASSUMED_FACTS_BYTES[entity]
    )
    expected = rates.expect(num_keys, Prices(settings.llm_input_price, settings.llm_output_price))
    tokens = f"{expected.num_input_tokens:,} tokens in and {expected.num_output_tokens:,} out"
    time = "" if expected.hours is None else f", {60 * expected.hours:,.0f} min"
    origin = "by the ledger's means" if rates.source == MEASURED else "at most"
    cap = Caps.of(settings, entity).num_keys
    return f"expected {tokens}, cost {expected.cost:,.2f}{time} ({origin}); at most {cap:,} a day (GRASP_LLM_BUDGET)"


def _short(text: str, num_chars: int) -> str:
    """One line of what can be seen: a model, or a catalogue, may write what a terminal obeys."""
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
    parser.add_argument("command", choices=("list", "replay"), help="show them, or have refused ones generated again")
    parser.add_argument("--day", type=day_argument, help="only those last asked for on this day, YYYY-MM-DD")
    parser.add_argument("--entity", choices=ENTITIES, help="only items, or only users")
    parser.add_argument("--reason", help="only this refusal reason or error")
    parser.add_argument("--limit", type=_limit, help=f"the latest so many; of `list` {SHOWN} when not given")
    arguments = parser.parse_args(given)
    try:
        settings = Settings.load()
        entities = [arguments.entity] if arguments.entity else list(ENTITIES)
        found = [letter for each in entities for letter in find(settings, each)]
        letters = chosen(found, arguments.day, arguments.reason)
        if arguments.command == "replay":
            text = replay(settings, letters, arguments.limit)
        else:
            text = listed(letters, arguments.limit or SHOWN, entities, Versions(settings).llm)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    prepare()
    main()
