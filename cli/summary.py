"""The demo's last lines: what was done, and where to look next, with commands that work as they are printed."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
from pydantic import SecretStr

from cli.visitors import num_outcomes, num_visits
from grasp import partitions, tables
from grasp.manifest import manifest_in_force, release_folder
from grasp.progress import say
from grasp.settings import PREFIX, ROOT, Settings

MAKE_FILE = "demo.mk"  # in GRASP_HOME; `make serve`, `sql` and `airflow` read it


def summarise(settings: Settings, cutoff: str, latest: str, user_id: str, home: Path) -> None:
    """Print eleven lines. Leave the settings in `home` for `make`; the Explorer's address shows the user."""
    (home / MAKE_FILE).write_text(make_variables(settings))
    say("--- summary")
    for name, text in (*_done(settings, cutoff, latest), *_next(settings, user_id, make_command(home, Path.cwd()))):
        say(f"{name:<11} {text}")


def _done(settings: Settings, cutoff: str, latest: str) -> Iterator[tuple[str, str]]:
    """What was done, by name: data, texts, model, fresh features, release, requests, quality report."""
    manifest = manifest_in_force(settings.releases)
    yield "data", _data(settings, latest)
    yield "texts", texts_line(settings, *_num_texts(settings))
    decision = json.loads((settings.home / "training" / latest / "decision.json").read_text())
    evaluation = settings.home / "training" / latest / "evaluation.json"  # absent when there was nothing to judge by
    judged = json.loads(evaluation.read_text()) if evaluation.exists() else None
    yield "model", f"trained up to {cutoff}, {model_line(decision, judged)}"
    if manifest.model:
        yield "fresh", fresh_line(release_folder(settings.releases, manifest) / "model" / "config.json")
    yield "release", f"{manifest.release_id}, model {manifest.model or 'none: what is popular'}, in {settings.releases}"
    yield "requests", f"{num_visits(settings)} and {num_outcomes(settings)} clicks and purchases by the demo's visitors"
    yield "quality", str(settings.data_docs / "index.html")


def _data(settings: Settings, day: str) -> str:
    users, items, quarantined = (
        _num_rows(partitions.partition_path(settings.lake, table, None, day))
        for table in (tables.USERS, tables.ITEMS, tables.QUARANTINE)
    )
    interactions = sum(
        _num_rows(partitions.partition_path(settings.lake, tables.INTERACTIONS, None, each))
        for each in partitions.days(settings.lake, tables.INTERACTIONS, None, until=day)
    )
    return (
        f"{users:,} users, {items:,} items, {interactions:,} interactions up to {day}; {quarantined:,} rows quarantined"
    )


def _num_rows(partition: Path) -> int:
    content = partitions.read_content(partition)
    return content.num_rows if content else 0


def _num_texts(settings: Settings) -> tuple[int, int]:
    """Texts that the language model was asked for on all days, and those that were accepted."""
    asked, accepted = set[str](), set[str]()
    for table in (tables.ITEM_GENERATION, tables.USER_GENERATION):
        for day in partitions.days(settings.lake, table, None):
            folder = partitions.partition_path(settings.lake, table, None, day)
            rows = pq.read_table(folder, columns=["generation_key", "description"], partitioning=None).to_pylist()
            asked |= {row["generation_key"] for row in rows}
            accepted |= {row["generation_key"] for row in rows if row["description"] is not None}
    return len(asked), len(accepted)


def texts_line(settings: Settings, num_asked: int, num_accepted: int) -> str:
    """Texts by the language model. With hardly any accepted it begins with a warning."""
    model = settings.llm_model if settings.llm_url else settings.llm.name
    counts = f"{num_asked:,} asked of {model}, {num_accepted:,} accepted"
    if num_asked and num_accepted <= 0.1 * num_asked:
        return f"warning: {counts}; facts stand in. A larger model does better: GRASP_LLM or GRASP_LLM_URL"
    return f"{counts}; all other descriptions are built from facts"


def model_line(decision: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """Whether the model was promoted, with the figures that decided, as `training.promote` wrote them."""
    if decision["promoted"] and evaluation:
        return f"promoted: {_figures(evaluation)}"
    figures = f"; {_figures(evaluation)}" if evaluation else ""
    return f"{'promoted' if decision['promoted'] else 'NOT promoted'}: {decision['reason']}{figures}"


def fresh_line(config_file: Path) -> str:
    """Which fresh features the model in force reads, and what they gained on validation."""
    found = json.loads(config_file.read_text())["metadata"]["fresh"]
    gains = [
        f"{name} {gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
        for name, gain in found["gains"].items()
        if name != "none"
    ]
    return f"{found['chosen']} chosen; validation NDCG@10 {', '.join(gains)}"


def _figures(evaluation: dict[str, Any]) -> str:
    """NDCG@10 of everything that was judged, the candidate first."""
    means = {model: by_group["overall"]["ndcg@10"]["mean"] for model, by_group in evaluation["metrics"].items()}
    candidate = evaluation["candidate"]
    others = [f"{model} {mean:.4f}" for model, mean in means.items() if model != candidate]
    return f"NDCG@10 over {evaluation['num_events']:,} events: {', '.join([f'model {means[candidate]:.4f}', *others])}"


def _next(settings: Settings, user_id: str, make: str) -> Iterator[tuple[str, str]]:
    """Where to look next; every command works as it is printed."""
    command = " ".join([*changed_variables(settings), str(Path(sys.executable).with_name("grasp"))])
    yield "Explorer", f"{make} serve    then http://{settings.host}:{settings.port}/explore#user={quote(user_id)}"
    yield "SQL", f"{make} sql    then the questions of docs/analysts.md"
    yield "Airflow", f"{make} airflow    then http://127.0.0.1:{settings.airflow_port}"
    yield "all others", f"{command} dead-letters list    or another command of `grasp --help`"


def make_command(home: Path, here: Path) -> str:
    """`make`, as it is typed where the user stands, so that it finds what the demo left in `home`."""
    is_usual_home = home == Settings.load({}).home
    variable = "" if is_usual_home else f"GRASP_HOME={shlex.quote(str(home))} "
    return f"{variable}make" + ("" if here == ROOT else f" -C {shlex.quote(str(ROOT))}")


def make_variables(settings: Settings) -> str:
    """The same settings for `make serve`, `sql` and `airflow`. A variable that is set wins, except the home."""
    lines = [f"override export GRASP_HOME := {_for_make(str(settings.home))}"]
    for name, value in _changed(settings).items():
        if name != "GRASP_HOME":
            lines.append(f"export {name} ?= {_for_make(value)}")
    return "".join(f"{line}\n" for line in ("# Of the last `grasp demo`. Remove this file to leave the demo.", *lines))


def _for_make(value: str) -> str:
    return value.replace("$", "$$").replace("#", "\\#")


def changed_variables(settings: Settings) -> list[str]:
    """`GRASP_*` assignments, quoted for a shell, that give these settings again. Secrets are left out."""
    return [f"{name}={shlex.quote(value)}" for name, value in _changed(settings).items()]


def _changed(settings: Settings) -> dict[str, str]:
    is_usual_home = settings.home == Settings.load({}).home
    home = {} if is_usual_home else {"GRASP_HOME": str(settings.home)}
    usual = Settings.load(home)
    return home | {
        PREFIX + name.upper(): settings.variables()[PREFIX + name.upper()]
        for name in Settings.model_fields
        if getattr(settings, name) != getattr(usual, name)
        and not isinstance(getattr(settings, name), SecretStr)
        and name != "task_retries"  # the demo alone does without
    }
