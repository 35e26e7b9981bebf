"""Rows with planted effects: the report must find them, with intervals on the right side of zero."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from benchmarks.core.store import write_about
from benchmarks.quality import switches
from benchmarks.quality.comparison import FILTERED, Comparison, best_rival, compare, figures, find, systems
from benchmarks.quality.report import REPORT, build
from benchmarks.quality.results import Results
from benchmarks.quality.rows import Row, RowInfo
from training.evaluation import metrics
from training.evaluation.metrics import Interval
from training.evaluation.ranking import Ranks

NUM = 300
RANDOM = np.random.default_rng(0)
EASE = RANDOM.random(NUM)  # what all systems share: an easy user is easy for all
GROUPS = {
    "overall": np.ones(NUM, dtype=bool),
    "head items": np.arange(NUM) % 3 > 0,
    "tail items": np.arange(NUM) % 3 == 0,
    "head users": np.arange(NUM) % 4 == 0,
    "tail users": np.arange(NUM) % 4 > 0,
    "repeat": np.zeros(NUM, dtype=bool),
    "non-repeat": np.ones(NUM, dtype=bool),
}
RANKINGS = ("filtered", "unfiltered", "sampled_0", "sampled_1")
MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "NUM_RESAMPLES", 200)


def make_info(**changed) -> RowInfo:
    values = {
        "wall_seconds": 90.0,
        "cpu_seconds": 100.0,
        "num_parameters": 12345,
        "num_epochs": 7,
        "best_epoch": 2,
        "validation_ndcg_at_10": 0.1,
        "num_trials": 4,
        "num_threads": 2,
        "commit": "abc1234",
        "data_checksum": "d1",
        "coverage_at_10": 0.25,
        "cross_category_share_at_10": None,
        "time_limit_seconds": 600.0,
        "patience": 5,
        "num_validation_users": 64,
    }
    return RowInfo(**(values | changed))


def add(results: Results, row: Row, skill: float, **info) -> None:
    """Store a row whose targets come higher the more skill it has; every seed has noise of its own."""
    random = np.random.default_rng(crc32(row.row_id.encode()))
    places = ((1.4 - EASE - skill + 0.3 * random.random(NUM)).clip(0, None) * 30).astype(int)
    none = np.zeros(NUM, int)
    rankings = {
        "filtered": Ranks(places, none),
        "unfiltered": Ranks(places + 1, none),
        "sampled_0": Ranks(places // 3, none),
        "sampled_1": Ranks(places // 3 + 1, none),
    }
    results.add(row, rankings, GROUPS, make_info(**info))


def trained(model: str, seed: int = 0, enhancer: str = "none", **fields) -> Row:
    return Row(model, seed, "main", backbone=model.split("_", maxsplit=1)[0], enhancer=enhancer, **fields)


def grasp(seed: int = 0, **fields) -> Row:
    return trained("sasrec_grasp", seed, "grasp", **fields)


def fill(folder: Path) -> Results:
    """A whole matrix: GRASP above STAR above the other enhancers above the backbone above popularity.

    Additions come on top, the kernel to GRASP as well.
    """
    results = Results(folder)
    for seed in range(3):
        add(results, trained("sasrec", seed), 0.5)
        add(results, grasp(seed), 0.9, attention_mass={"clean": 0.8})
        add(results, grasp(seed, addition="kernel"), 1.0)
        add(results, trained("sasrec_llm_esr", seed, "llm_esr"), 0.6)
    add(results, Row("popularity", 0, "main"), 0.1)
    add(results, Row("star", 0, "main"), 0.7)
    add(results, trained("sasrec_alphafuse", 0, "alphafuse"), 0.65)
    add(results, trained("sasrec_llm_init", 0, "llm_init"), 0.3)
    add(results, trained("sasrec_llm_esr", 0, "llm_esr", addition="max_cosine"), 0.7)
    add(results, trained("sasrec_llm_esr", 0, "llm_esr", addition="star"), 0.85)
    add(results, trained("sasrec_llm_esr", 0, "llm_esr", addition="kernel"), 0.7)
    add(results, trained("sasrec_alphafuse", 0, "alphafuse", addition="kernel"), 0.8)
    add(results, grasp(ablation="no_attention"), 0.7)
    add(results, grasp(ablation="with_global"), 0.9)
    add(results, grasp(ablation="activation=softmax,normalise=mean"), 0.8)
    add(results, grasp(ablation="activation=sigmoid,normalise=sum"), 0.6)
    add(results, grasp(ablation="activation=softmax,normalise=sum"), 0.6)
    add(results, grasp(ablation="activation=sigmoid,normalise=mean,bias=zero"), 0.6)
    for k, skill in ((1, 0.75), (5, 0.85), (50, 0.8)):
        add(results, grasp(ablation=f"k={k}"), skill)
    for share, skill in ((0.2, 0.95), (1.0, 0.5)):  # the middle best: order is by share
        mass = {"clean": 0.8, "corrupted": 0.8 - share / 2}
        add(results, grasp(corruption=share, ablation="no_kernel"), skill, attention_mass=mass)
        add(results, trained("sasrec_llm_esr", 0, "llm_esr", corruption=share), skill - 0.3)
    add(results, grasp(ablation="no_kernel"), 0.88)
    add(results, trained("gru4rec"), 0.4)
    add(results, trained("gru4rec_grasp", 0, "grasp"), 0.6)
    add(results, trained("bert4rec"), 0.5)
    add(results, trained("bert4rec", addition="kernel"), 0.6)
    add(results, trained("bert4rec_grasp", 0, "grasp"), 0.3)
    add(results, trained("bert4rec_grasp", 0, "grasp", addition="kernel"), 0.7)
    describe(folder, [*(each.row.row_id for each in results.rows()), "sasrec_rlmrec_generative__seed=0"])
    return results


def describe(folder: Path, wanted: list[str] = (), data: str = "beauty") -> None:
    counts = {"num_users": NUM, "num_items": 1000, "num_interactions": 9 * NUM, "num_events": NUM}
    about = {"data": data, "command": "python -m x --out DIR", "machine": MACHINE, "wanted": list(wanted)}
    write_about(folder, about | counts)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    fill(folder)
    return folder


@pytest.fixture(scope="module")
def written(filled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "NUM_RESAMPLES", 200)
        REPORT.write(filled)
    return (filled / "report.md").read_text()


def fill_by_time(folder: Path) -> None:
    """Two systems on 300 events of a hundred users: what is known of them is worth less each day."""
    results, day = Results(folder), np.arange(NUM) % 20
    groups = GROUPS | {
        "known users": np.arange(NUM) % 5 > 0,
        "cold users": np.arange(NUM) % 5 == 0,
        "cold items": np.arange(NUM) % 10 == 0,
        "days 1-10": day < 10,
        "days 11-20": day >= 10,
        "days from 51 on": np.zeros(NUM, bool),
    }
    units = {"user": np.arange(NUM, dtype=np.int32) // 3, "item": np.arange(NUM, dtype=np.int32) % 20}
    for model, skill in (("sasrec", 0), ("sasrec_grasp", 1)):
        for addition in ("none", "kernel"):
            places = (day - skill).clip(0)
            enhancer = model.removeprefix("sasrec").removeprefix("_") or "none"
            row = trained(model, 0, enhancer, addition=addition, protocol="global-time")
            results.add(row, dict.fromkeys(RANKINGS, Ranks(places, np.zeros(NUM, int))), groups, make_info(), units)
    describe(folder, [each.row.row_id for each in results.rows()])


def test_a_report_by_global_time_says_so_and_shows_who_is_new_and_how_models_age(tmp_path):
    fill_by_time(tmp_path)
    REPORT.write(tmp_path)
    text = (tmp_path / "report.md").read_text()

    assert text.startswith("# Quality on beauty, global-time\n")
    assert "- Protocol: global-time, chosen on the days between 80 % and 90 %" in text
    assert "For cold items, items are resampled." in text
    assert json.loads((tmp_path / "summary.json").read_text())["figures"] == {}  # goals are those of the published one
    aged = section(text, "By days since the cut")
    assert cells(aged, "model")[1:] == [
        "overall (300)",
        "known users (240)",
        "cold users (60)",
        "cold items (30)",
        "days 1-10 (150)",
        "days 11-20 (150)",
    ]
    assert float(cells(aged, "sasrec_grasp")[5]) > float(cells(aged, "sasrec_grasp")[6])
    against = section(text, "sasrec_grasp + kernel against every other system")
    assert any(line.startswith("| sasrec | cold users |") for line in against)


def test_an_interval_resamples_users_with_all_their_events(tmp_path):
    fill_by_time(tmp_path)
    results = Results(tmp_path)
    own, rival = (find(systems(results), model) for model in ("sasrec_grasp", "sasrec"))
    values = [
        results.per_event(f"{model}__global-time__seed=0", "filtered", "ndcg@10")
        for model in ("sasrec_grasp", "sasrec")
    ]

    found = compare(results, own, rival, FILTERED).difference
    assert found == metrics.bootstrap_interval(values[0] - values[1], np.arange(NUM) // 3)
    is_cold = np.arange(NUM) % 10 == 0
    of_items = compare(results, own, rival, FILTERED, group="cold items").difference
    assert of_items == metrics.bootstrap_interval((values[0] - values[1])[is_cold], np.arange(NUM)[is_cold] % 20)


def section(text: str, title: str) -> list[str]:
    """The lines of a section."""
    return text.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0].splitlines()


def cells(lines: list[str], *start: str) -> list[str]:
    """The first table row that starts with these cells."""
    found = next(line for line in lines if line.startswith(f"| {' | '.join(start)} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_planted_advantage_is_found_and_sure(filled):
    results = Results(filled)
    among = systems(results)
    found = compare(results, find(among, "sasrec_grasp"), find(among, "sasrec"), FILTERED)

    assert found.verdict == "better"
    assert found.difference.low > 0
    assert 1 < found.ratio.low < found.ratio.mean < found.ratio.high
    assert compare(results, find(among, "sasrec"), find(among, "sasrec_grasp"), FILTERED).verdict == "worse"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.03, "better"), (-0.01, 0.03, "undecided"), (-0.03, -0.01, "worse")]
)
def test_only_an_interval_without_zero_decides(low, high, verdict):
    found = Comparison(Interval((low + high) / 2, low, high), rival_mean=0.1)

    assert found.verdict == verdict
    assert found.ratio.low == pytest.approx(1 + 10 * low)


def test_seeds_are_averaged_per_user_before_the_difference(tmp_path):
    results = Results(tmp_path)
    all_first, all_missed = np.zeros(4, int), np.full(4, 30)
    groups = {"overall": np.ones(4, bool)}
    for seed, places in enumerate((all_first, all_missed)):
        results.add(trained("sasrec", seed), {"filtered": Ranks(places, all_first)}, groups, make_info())
    results.add(trained("gru4rec"), {"filtered": Ranks(all_missed, all_first)}, groups, make_info())
    among = systems(results)

    found = compare(results, find(among, "sasrec"), find(among, "gru4rec"), FILTERED)
    # Each user has 1 and 0, so one half for sure; drawing seeds would have made it anything from 0 to 1.
    assert (found.difference.low, found.difference.mean, found.difference.high) == (0.5, 0.5, 0.5)


def test_rivals_are_trained_and_not_grasp(filled):
    among = systems(Results(filled))

    assert best_rival(among).label == "sasrec_alphafuse"  # STAR and the score-level additions are above it
    assert best_rival(among, "star").label == "sasrec_llm_esr + star"
    assert best_rival(among, "max_cosine").label == "sasrec_llm_esr + max-cosine"


def test_the_best_rival_with_a_kernel_has_ours_or_stars(filled):
    among = systems(Results(filled))

    assert best_rival(among, "kernel").label == "sasrec_llm_esr + star"
    without_star = [one for one in among if one.row.addition != "star"]
    assert best_rival(without_star, "kernel").label == "sasrec_alphafuse + kernel"


def test_figures_come_from_the_rows(filled):
    results = Results(filled)
    among = systems(results)
    found = figures(results)

    def ndcg(model, ranking="filtered", addition="none", group="overall"):
        return find(among, model, addition).mean(ranking, "ndcg@10", group)

    assert len(found) == 11
    assert all(figure.value is not None for figure in found.values())

    def grasp_ndcg(ranking="filtered", group="overall"):
        return ndcg("sasrec_grasp", ranking, "kernel", group)

    assert found["grasp_full_ndcg10"].value == pytest.approx(grasp_ndcg())
    assert found["grasp_full_hr10"].value == find(among, "sasrec_grasp", "kernel").mean("filtered", "hr@10")
    assert found["grasp_over_star_full"].value == pytest.approx(grasp_ndcg() / ndcg("star"))
    assert found["grasp_over_best_rival_full"].value == pytest.approx(grasp_ndcg() / ndcg("sasrec_alphafuse"))
    assert found["grasp_over_best_rival_with_kernel_full"].value == pytest.approx(
        grasp_ndcg() / ndcg("sasrec_llm_esr", addition="star")
    )
    assert found["grasp_over_llmesr_sampled_tail_items"].value == pytest.approx(
        grasp_ndcg("sampled", "tail items") / ndcg("sasrec_llm_esr", "sampled", group="tail items")
    )
    assert found["grasp_over_llmesr_maxcos_sampled"].value == pytest.approx(
        grasp_ndcg("sampled") / ndcg("sasrec_llm_esr", "sampled", "max_cosine")
    )
    low = found["corruption_100_over_backbone_low"].value
    corrupted = find(among, "sasrec_grasp", corruption=1.0, ablation="no_kernel").mean("filtered", "ndcg@10")
    assert 0.8 < low < corrupted / ndcg("sasrec") - 0.05  # planted: on a par with its backbone, within some noise


def test_figures_without_rows_have_no_value(tmp_path):
    results = Results(tmp_path)
    add(results, trained("sasrec"), 0.5)
    add(results, grasp(), 0.9)  # without its kernel it is not what serves
    found = figures(results)

    assert [name for name, figure in found.items() if figure.value is not None] == ["sasrec_strong_full_ndcg10"]


def test_the_first_lines_say_what_was_measured(written):
    first = written.split("\n## ")[0]

    for told in (
        "300 users, 1,000 items, 2,700 interactions",
        "Some CPU, 2 cores",
        "`python -m x --out DIR`",
        "abc1234",
        "Protocol: published, leave-one-out in the order of the file",
    ):
        assert told in first
    assert "40 finished, 1 of 41 wanted ones missing (`sasrec_rlmrec_generative__seed=0`)" in first
    assert "every trained row: 10 minutes, patience 5, 64 validation users, 4 trials" in first
    assert "mean of 2 draws" in first


def test_an_unequal_allowance_shows(tmp_path):
    results = Results(tmp_path)
    add(results, trained("sasrec"), 0.5)
    add(results, trained("gru4rec"), 0.5, time_limit_seconds=1200.0)

    describe(tmp_path)
    text = "\n".join(build(tmp_path, "").facts)
    assert "Allowed to 1 trained rows (`sasrec__seed=0`, ...): 10 minutes" in text
    assert "Allowed to 1 trained rows (`gru4rec__seed=0`, ...): 20 minutes" in text


def test_a_row_that_patience_did_not_end_is_named(tmp_path, written):
    results = Results(tmp_path)
    add(results, trained("sasrec", 0), 0.5, num_epochs=7, best_epoch=7)
    add(results, trained("sasrec", 1), 0.5, num_epochs=7, best_epoch=2)

    describe(tmp_path)
    assert "Ended by a limit, not by patience: `sasrec__seed=0`." in build(tmp_path, "").facts
    assert "Ended by a limit" not in written


def test_figures_stand_beside_their_goals_and_like_beside_like(written):
    lines = written.split("\n## ")[0].splitlines()

    assert cells(lines, "grasp_over_best_rival_full")[2:] == ["at least 1.1", "yes"]
    [found] = [line for line in lines if line.startswith("- the best other trained system, full ranking:")]
    without, with_kernel = (float(part.split()[0]) for part in found.split(": ")[1].split(", "))
    assert without > 1.1
    assert with_kernel > 1


def test_the_main_table_has_the_best_system_first(written):
    lines = section(written, "All systems")
    rows = [line for line in lines if line.startswith("| ") and " ± " in line]

    assert rows[0].startswith("| sasrec_grasp + kernel | 3 |")
    assert cells(lines, "popularity", "1")[-4:] == ["25.0 %", "–", "1.7", "12,345"]
    assert len(cells(lines, "sasrec_llm_esr + max-cosine", "1")) == 16
    assert "Below their own backbone alone: bert4rec_grasp, sasrec_llm_init." in lines
    assert sum("The same at k =" in line for line in lines) == 4
    assert any("non-repeat (300)" in line and "repeat (0)" not in line for line in lines)


def test_grasp_with_its_kernel_is_set_against_everyone_else(written):
    lines = section(written, "sasrec_grasp + kernel against every other system")

    assert cells(lines, "sasrec_alphafuse (best other trained one, nothing added)")[1].startswith("+")
    assert cells(lines, "sasrec_llm_esr + star (best other trained one with kernel or STAR)")[1].startswith("+")
    assert cells(lines, "sasrec_grasp")[1].startswith("+")
    assert sum("best other" in line for line in lines) == 2
    assert not [line for line in lines if line.startswith("| sasrec_grasp + kernel |")]
    assert cells(lines, "sasrec_llm_esr + star", "tail items")


def one_seed(folder, seed: int) -> float:
    """Filtered NDCG@10 of GRASP by one seed."""
    [row] = [each for each in Results(folder).rows() if each.row.row_id == f"sasrec_grasp__seed={seed}"]
    return row.value("filtered", "ndcg@10")


def test_every_switch_is_compared_with_the_model_as_it_is(written, filled):
    lines = section(written, "Ablations")

    for switch, low, high in (("no_attention", -1, -0.1), ("with_global", -0.03, 0.03)):
        difference, *_ = cells(lines, "sasrec_grasp", switch)[5].split(" ")
        assert low < float(difference) < high
    assert "k=5" not in "".join(lines)
    assert f"standard deviation of {np.std([one_seed(filled, seed) for seed in range(3)], ddof=1):.4f}" in "".join(
        lines
    )
    assert "activation=" not in "".join(lines)


def test_the_two_by_two_sets_sigmoid_against_softmax_at_one_normalisation(written):
    lines = section(written, "Activation and normalisation")

    own, zero = "sigmoid, bias -log L", "sigmoid, bias zero"
    assert cells(lines, own)[1].endswith("as it is")
    assert cells(lines, zero)[1].split("; ")[1].startswith("-0.")
    found = {line.split(":")[0]: interval_of(line) for line in lines if "minus softmax" in line}
    assert list(found) == [
        f"- {own} minus softmax, mean",
        f"- {zero} minus softmax, mean",
        f"- {own} minus softmax, sum",
    ]
    assert found[f"- {own} minus softmax, mean"][0] > 0  # the lower end: better
    assert found[f"- {zero} minus softmax, mean"][1] < 0  # the upper end: worse
    low, high = found[f"- {own} minus softmax, sum"]
    assert low < 0 < high


def interval_of(line: str) -> list[float]:
    """The ends of the interval that a line ends with."""
    return [float(end) for end in line.split("[")[1].rstrip("]").split(",")]


def test_the_k_curve_holds_the_model_as_it_is(written):
    lines = section(written, "Number of neighbours")

    assert [line.split(" | ")[0] for line in lines if line[:3].strip("| ").isdigit()] == ["| 1", "| 5", "| 10", "| 50"]
    assert cells(lines, switches.OWN["k"])[-1] == "as it is"


def test_corruption_is_measured_against_the_backbone_alone(written):
    lines = section(written, "Corrupted knowledge")

    assert cells(lines, "sasrec_grasp", "0 %")[-1] == "better"
    assert cells(lines, "sasrec_grasp", "100 %")[-1] == "undecided"
    assert cells(lines, "sasrec_llm_esr", "100 %")[-1] == "worse"
    assert [line.split(" | ")[1] for line in lines if "sasrec_grasp" in line] == ["0 %", "20 %", "100 %"]


def test_each_backbone_is_judged_on_every_group_both_without_the_kernel_and_both_with_it(written, filled):
    lines = section(written, "GRASP on each backbone")

    for group in ("overall", "tail items", "tail users", "head items", "head users"):
        assert cells(lines, "gru4rec_grasp", group)[-1] == "better"
        assert cells(lines, "bert4rec_grasp", group)[-1] == "worse"
        assert cells(lines, "bert4rec_grasp + kernel", group)[-1] == "better"
    alone = find(systems(Results(filled)), "bert4rec", "kernel").mean("filtered", "ndcg@10")
    assert cells(lines, "bert4rec_grasp + kernel", "overall")[2] == f"{alone:.4f}"


def test_attention_mass_is_shown_by_share(written):
    lines = section(written, "Attention mass")

    assert cells(lines, "sasrec_grasp", "no_kernel", "100 %")[-2:] == ["0.800", "0.300"]
    assert cells(lines, "sasrec_grasp", "–", "0 %")[-2:] == ["0.800", "–"]
    assert [line.split(" | ")[2] for line in lines if "sasrec_grasp" in line] == ["0 %", "20 %", "100 %"]


def test_plots_are_small_and_the_same_every_time(written, filled):
    plots = {file.name: file.read_bytes() for file in filled.glob("*.svg")}
    REPORT.write(filled)

    assert set(plots) == {"quality-cost.svg", "tail-head.svg", "corruption.svg", "k.svg"}
    assert all(f"({name})" in written for name in plots)
    assert max(map(len, plots.values())) < 60_000
    assert plots == {file.name: file.read_bytes() for file in filled.glob("*.svg")}
    assert written == (filled / "report.md").read_text()


def test_the_summary_says_where_it_was_measured(written, filled):
    found = json.loads((filled / "summary.json").read_text())

    assert (found["machine"], found["command"], found["commit"]) == (MACHINE, "python -m x --out DIR", "abc1234")
    assert len(found["figures"]) == 11


def test_sections_without_rows_are_left_out(tmp_path):
    results = Results(tmp_path)
    add(results, trained("sasrec"), 0.5)
    add(results, Row("popularity", 0, "main"), 0.1)
    describe(tmp_path, data="fashion")
    REPORT.write(tmp_path)

    titles = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("## ")]
    assert titles == ["## All systems", "## Quality against cost", "## Tail against head"]
    assert json.loads((tmp_path / "summary.json").read_text())["figures"] == {}  # goals are Beauty's


def test_an_empty_folder_is_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match=r"error: no finished row in .*: run python -m benchmarks.quality first"):
        REPORT.main([str(tmp_path)])
