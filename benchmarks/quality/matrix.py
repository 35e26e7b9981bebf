"""The systems that a quality benchmark compares, the most wanted first.

A `MatrixEntry` is one training, or none for a control. It yields one row, or several when its scores are also shown
with an addition: the ranker's own history kernel, the cosine to the nearest text of the history, or STAR.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from benchmarks.data.datasets import COMMON_INPUTS, Inputs
from benchmarks.data.protocols import Protocol
from benchmarks.quality.rows import FRESH, Addition, Row
from training.fitting.recipes import TrainConfig, recipe

CONTROLS = ("popularity", "repeat", "markov", "knn", "knn_markov", "knn_markov_popularity", "star")
SHARES = (0.2, 1.0)  # of corrupted descriptions and neighbours
# Corruption is measured without the history kernel, in scores and in training. The kernel knows what other users took,
# which is never corrupted; a ranker that relies on it stops before it has learnt to do without its descriptions. The
# kernel also knows the order of items, which several targets a step blur without it. The backbone has one target, too.
NO_KERNEL: dict[str, object] = {"kernel_length": 0, "num_targets": 1}
ABLATIONS: dict[str, dict[str, object]] = {
    "no_attention": {"use_attention": False},
    "no_similar": {"use_similar": False},
    "with_global": {"use_global": True},
    "with_global_of_mean": {"use_global": True, "global_keys": "mean"},
    "activation=softmax,normalise=mean": {"activation": "softmax", "normalise": "mean"},
    "activation=softmax,normalise=sum": {"activation": "softmax", "normalise": "sum"},
    "activation=sigmoid,normalise=sum": {"activation": "sigmoid", "normalise": "sum"},
    "activation=sigmoid,normalise=sum,bias=zero": {
        "activation": "sigmoid",
        "normalise": "sum",
        "sigmoid_bias": "zero",
    },
    "activation=sigmoid,normalise=mean,bias=zero": {"sigmoid_bias": "zero"},
    "no_lenders": {"num_lenders": 0},
    "never_lent_only": {"lent_only": 0.0},
    "no_averaging": {"averaging": 0.0},
    "one_target": {"num_targets": 1},
    "items_sem": {"item_representation": "sem"},
    "items_dual": {"item_representation": "dual"},
    "mode_gate": {"mode": "gate"},
    "mode_cross": {"mode": "cross"},
    "mode_full": {"mode": "full"},
    "user_text_described": {"user_text": "described"},
    "candidate_mlp": {"candidate": "mlp"},
}
# How GRASP is trained is not part of its idea, so its strongest rivals are also shown trained in the same way.
AS_GRASP = ("averaging", "num_targets", "target_decay", "selection")
# Settings tried on validation with the first seed, the same for every trained system. All rows use the best one.
TRIALS: tuple[dict[str, object], ...] = (
    {"width": 64, "dropout": 0.5},
    {"width": 128, "dropout": 0.5},
    {"width": 128, "dropout": 0.2},
)
BATCH_SIZE, NUM_NEGATIVES = 256, 1024  # of all systems but the published ones: fast on small machines
KERNEL_LENGTH = 5  # of the history kernel, with and without which these systems are shown
SCORE_LEVEL: tuple[Addition, ...] = ("none", "kernel", "max_cosine", "star")


@dataclass(frozen=True)
class MatrixEntry:
    """One system with one seed. `config` is None for a control."""

    row: Row
    config: TrainConfig | None = None
    tuned_as: str = ""  # the system whose trials choose the settings; empty for settings as published
    inputs: Inputs = COMMON_INPUTS
    additions: tuple[Addition, ...] = ("none",)
    trials: tuple[dict[str, object], ...] = ()  # settings of its own that are tried, instead of those of `tuned_as`

    @property
    def rows(self) -> list[Row]:
        return [replace(self.row, addition=addition) for addition in self.additions]


def matrix(data: str, num_seeds: int, protocol: Protocol = "published") -> list[MatrixEntry]:
    """All entries for a data set. `fashion` has no texts; an unknown folder is compared like `beauty`."""
    build = {"fashion": _ids_only, "movielens-100k": _with_profiles}.get(data, _texts)
    return [replace(entry, row=replace(entry.row, protocol=protocol)) for entry in build(num_seeds)]


def chosen_entries(entries: list[MatrixEntry], *, models: str = "all", sections: str = "all") -> list[MatrixEntry]:
    """The entries of comma-separated models and sections, or `all`. Raises `ValueError` for an unknown name."""
    for name, wanted in (("model", models), ("section", sections)):
        known = {getattr(entry.row, name) for entry in entries}
        if wanted != "all" and (unknown := sorted(set(wanted.split(",")) - known)):
            raise ValueError(f"no {name} {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [each for each in entries if _is_among(each.row.model, models) and _is_among(each.row.section, sections)]


def _is_among(name: str, wanted: str) -> bool:
    return wanted == "all" or name in wanted.split(",")


def _texts(num_seeds: int) -> Iterator[MatrixEntry]:
    yield from _controls()
    for seed in range(num_seeds):
        for model in ("sasrec", "sasrec_grasp", "sasrec_llm_init", "sasrec_llm_esr", "sasrec_alphafuse"):
            # LLM-ESR + max-cosine is compared with others over all seeds.
            everything = seed == 0 or model == "sasrec_llm_esr"
            yield trained_entry(model, seed, "main", additions=SCORE_LEVEL if everything else ("none", "kernel"))
    for enhancer in ("rlmrec_contrastive", "rlmrec_generative"):
        yield trained_entry(f"sasrec_{enhancer}", 0, "main", additions=SCORE_LEVEL)
    for ablation, switches in ABLATIONS.items():
        yield trained_entry("sasrec_grasp", 0, "ablations", ablation=ablation, switches=switches)
    yield trained_entry(
        "sasrec_grasp",
        0,
        "ablations",
        ablation="user_text_without_last",
        switches={"user_text": "described"},
        inputs=Inputs(without_last=True),
    )
    additions: tuple[Addition, ...] = ("none", "kernel")
    for model in ("sasrec_llm_init", "sasrec_alphafuse"):
        yield trained_entry(model, 0, "ablations", ablation="as_grasp", switches=as_grasp(), additions=additions)
    for corruption in (0.0, *SHARES):
        for seed in range(num_seeds):
            inputs = Inputs(corruption=corruption)
            yield trained_entry(
                "sasrec_grasp", seed, "corruption", ablation="no_kernel", switches=NO_KERNEL, inputs=inputs
            )
    for corruption in SHARES:
        for model in ("sasrec_llm_esr", "sasrec_alphafuse"):
            yield trained_entry(model, 0, "corruption", inputs=Inputs(corruption=corruption))
    for backbone in ("gru4rec", "bert4rec"):
        for model in (backbone, f"{backbone}_llm_esr", f"{backbone}_grasp"):
            yield trained_entry(model, 0, "backbones", additions=("none", "kernel"))
    for k in (1, 5, 20, 50):  # 10 is the main row
        yield trained_entry("sasrec_grasp", 0, "neighbours", ablation=f"k={k}", inputs=Inputs(k=k))


def _ids_only(_: int) -> Iterator[MatrixEntry]:
    yield from _controls(has_texts=False)
    for backbone in ("sasrec", "gru4rec", "bert4rec"):
        yield trained_entry(f"{backbone}_legacy", 0, "main")
        yield trained_entry(backbone, 0, "main", additions=("none", "kernel"))


def _with_profiles(num_seeds: int) -> Iterator[MatrixEntry]:
    yield from _controls()
    for seed in range(num_seeds):
        for model in ("sasrec", "sasrec_grasp", "sasrec_grasp_described"):
            yield trained_entry(model, seed, "main", additions=SCORE_LEVEL if seed == 0 else ("none", "kernel"))


def _controls(has_texts: bool = True) -> Iterator[MatrixEntry]:
    for model in CONTROLS:
        if has_texts or model != "star":
            yield MatrixEntry(Row(model, 0, "main"))


def as_grasp() -> dict[str, object]:
    """The switches by which another system is trained in GRASP's way."""
    return {name: getattr(recipe("sasrec_grasp"), name) for name in AS_GRASP}


def trained_entry(
    model: str,
    seed: int,
    section: str,
    *,
    ablation: str = "",
    switches: dict[str, object] | None = None,
    inputs: Inputs = COMMON_INPUTS,
    additions: tuple[Addition, ...] = ("none",),
) -> MatrixEntry:
    """The entry of a recipe, with switches of its training or its ranker turned, or with other inputs."""
    config = recipe(model)
    row = Row(model, seed, section, config.backbone, config.enhancer, corruption=inputs.corruption, ablation=ablation)
    if config.name.endswith("_legacy"):
        if switches or additions != ("none",):
            raise ValueError(f"{model} is measured as published, without switches and additions")
        return MatrixEntry(row, config)
    config = replace(config, batch_size=BATCH_SIZE, num_negatives=NUM_NEGATIVES)
    if not set(additions) & set(FRESH):  # a ranker that is scored without takers is trained without them
        config = replace(config, takers_offset=())
    switches, of_training = switches or {}, {field.name for field in fields(TrainConfig)}
    config = replace(config, **{name: value for name, value in switches.items() if name in of_training})  # type: ignore[arg-type]
    of_ranker = {name: value for name, value in switches.items() if name not in of_training}
    config = config.with_switches(**({"kernel_length": KERNEL_LENGTH} | of_ranker))
    # Trials cost more than all else, so an enhancer keeps the settings that its trials over SASRec chose.
    return MatrixEntry(row, config, tuned_as(config), inputs, additions)


def tuned_as(config: TrainConfig) -> str:
    """The system over SASRec whose trials choose the width and dropout of this one."""
    return recipe(config.name.replace(config.backbone, "sasrec", 1)).name


def with_trial(config: TrainConfig, settings: dict[str, object]) -> TrainConfig:
    """A recipe with the settings of a trial; AlphaFuse trains half of its width."""
    config = config.with_switches(**settings)
    if config.enhancer == "alphafuse":
        config = config.with_switches(null_width=int(str(settings["width"])) // 2)
    return config
