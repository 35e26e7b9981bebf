"""Which systems a quality benchmark compares, in the order in which they are wanted.

A `Job` is one training (or none, for a control) and yields one row, or several where scores are also shown with
something added: the ranker's own history kernel, the cosine to the nearest text of the history, and STAR.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from benchmarks.data.datasets import COMMON_INPUTS, Inputs
from benchmarks.quality.rows import Addition, Row
from training.fitting.recipes import TrainConfig, recipe

CONTROLS = ("popularity", "repeat", "markov", "knn", "knn_markov", "knn_markov_popularity", "star")
SHARES = (0.2, 1.0)  # of corrupted descriptions and neighbours
# Corruption is measured without the history kernel, at score level and in training: what others took is never
# corrupted, and a ranker that leans on it stops before it has learnt to do without its descriptions. Further targets a
# step are for a ranker whose kernel knows the order; without one they blur it, and the backbone it is held against has
# one too.
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
# How GRASP is trained is no part of its idea, so its strongest rivals are shown trained in the same way.
AS_GRASP = ("averaging", "num_targets", "target_decay", "selection")
# Settings tried on validation with the first seed, the same for every trained system; the best one serves all its rows.
TRIALS: tuple[dict[str, object], ...] = (
    {"width": 64, "dropout": 0.5},
    {"width": 128, "dropout": 0.5},
    {"width": 128, "dropout": 0.2},
)
BATCH_SIZE, NUM_NEGATIVES = 256, 1024  # of the strong systems: quick on small machines
KERNEL_LENGTH = 5  # of the history kernel, which every strong system is shown with and without
SCORE_LEVEL: tuple[Addition, ...] = ("none", "kernel", "max_cosine", "star")


@dataclass(frozen=True)
class Job:
    """One system with one seed. `config` is None for a control."""

    row: Row
    config: TrainConfig | None = None
    tuned_as: str = ""  # the system whose trials settle this one's settings; nothing: they are as published
    inputs: Inputs = COMMON_INPUTS
    additions: tuple[Addition, ...] = ("none",)

    @property
    def rows(self) -> list[Row]:
        return [replace(self.row, addition=addition) for addition in self.additions]


def matrix(data: str, num_seeds: int) -> list[Job]:
    """All jobs for a data set: `fashion` has no texts, and every other folder is compared like `beauty`."""
    build = {"fashion": _ids_only, "movielens-100k": _with_profiles}.get(data, _texts)
    return list(build(num_seeds))


def chosen(jobs: list[Job], *, models: str = "all", sections: str = "all") -> list[Job]:
    """The jobs of comma-separated models and sections, `all` for any. Raises `ValueError` naming what is none."""
    for name, wanted in (("model", models), ("section", sections)):
        known = {getattr(job.row, name) for job in jobs}
        if wanted != "all" and (unknown := sorted(set(wanted.split(",")) - known)):
            raise ValueError(f"no {name} {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [job for job in jobs if _is_among(job.row.model, models) and _is_among(job.row.section, sections)]


def _is_among(name: str, wanted: str) -> bool:
    return wanted == "all" or name in wanted.split(",")


def _texts(num_seeds: int) -> Iterator[Job]:
    yield from _controls()
    for seed in range(num_seeds):
        for model in ("sasrec", "sasrec_grasp", "sasrec_llm_init", "sasrec_llm_esr", "sasrec_alphafuse"):
            # Who is compared with LLM-ESR + max-cosine needs every seed of it.
            everything = seed == 0 or model == "sasrec_llm_esr"
            yield trained(model, seed, "main", additions=SCORE_LEVEL if everything else ("none", "kernel"))
    for enhancer in ("rlmrec_contrastive", "rlmrec_generative"):
        yield trained(f"sasrec_{enhancer}", 0, "main", additions=SCORE_LEVEL)
    for ablation, switches in ABLATIONS.items():
        yield trained("sasrec_grasp", 0, "ablations", ablation=ablation, switches=switches)
    yield trained(
        "sasrec_grasp",
        0,
        "ablations",
        ablation="user_text_without_last",
        switches={"user_text": "described"},
        inputs=Inputs(without_last=True),
    )
    as_grasp = {name: getattr(recipe("sasrec_grasp"), name) for name in AS_GRASP}
    additions: tuple[Addition, ...] = ("none", "kernel")
    for model in ("sasrec_llm_init", "sasrec_alphafuse"):
        yield trained(model, 0, "ablations", ablation="as_grasp", switches=as_grasp, additions=additions)
    for corruption in (0.0, *SHARES):
        for seed in range(num_seeds):
            inputs = Inputs(corruption=corruption)
            yield trained("sasrec_grasp", seed, "corruption", ablation="no_kernel", switches=NO_KERNEL, inputs=inputs)
    for corruption in SHARES:
        for model in ("sasrec_llm_esr", "sasrec_alphafuse"):
            yield trained(model, 0, "corruption", inputs=Inputs(corruption=corruption))
    for backbone in ("gru4rec", "bert4rec"):
        for model in (backbone, f"{backbone}_llm_esr", f"{backbone}_grasp"):
            yield trained(model, 0, "backbones", additions=("none", "kernel"))
    for k in (1, 5, 20, 50):  # 10 is the main row
        yield trained("sasrec_grasp", 0, "neighbours", ablation=f"k={k}", inputs=Inputs(k=k))


def _ids_only(_: int) -> Iterator[Job]:
    yield from _controls(has_texts=False)
    for backbone in ("sasrec", "gru4rec", "bert4rec"):
        yield trained(f"{backbone}_legacy", 0, "main")
        yield trained(backbone, 0, "main", additions=("none", "kernel"))


def _with_profiles(num_seeds: int) -> Iterator[Job]:
    yield from _controls()
    for seed in range(num_seeds):
        for model in ("sasrec", "sasrec_grasp", "sasrec_grasp_described"):
            yield trained(model, seed, "main", additions=SCORE_LEVEL if seed == 0 else ("none", "kernel"))


def _controls(has_texts: bool = True) -> Iterator[Job]:
    for model in CONTROLS:
        if has_texts or model != "star":
            yield Job(Row(model, 0, "main"))


def trained(
    model: str,
    seed: int,
    section: str,
    *,
    ablation: str = "",
    switches: dict[str, object] | None = None,
    inputs: Inputs = COMMON_INPUTS,
    additions: tuple[Addition, ...] = ("none",),
) -> Job:
    """The job of a recipe, with some switches turned, of its training or its ranker, or other inputs."""
    config = recipe(model)
    row = Row(model, seed, section, config.backbone, config.enhancer, corruption=inputs.corruption, ablation=ablation)
    if config.name.endswith("_legacy"):
        if switches or additions != ("none",):
            raise ValueError(f"{model} is measured as published, without switches and additions")
        return Job(row, config)
    config = replace(config, batch_size=BATCH_SIZE, num_negatives=NUM_NEGATIVES)
    switches, of_training = switches or {}, {field.name for field in fields(TrainConfig)}
    config = replace(config, **{name: value for name, value in switches.items() if name in of_training})  # type: ignore[arg-type]
    of_ranker = {name: value for name, value in switches.items() if name not in of_training}
    config = config.with_switches(**({"kernel_length": KERNEL_LENGTH} | of_ranker))
    # Trials cost more than all else: an enhancer keeps the settings that SASRec's trials chose for it.
    return Job(row, config, tuned_as(config), inputs, additions)


def tuned_as(config: TrainConfig) -> str:
    """The system over SASRec whose trials settle the width and dropout of this one."""
    return recipe(config.name.replace(config.backbone, "sasrec", 1)).name


def with_trial(config: TrainConfig, settings: dict[str, object]) -> TrainConfig:
    """A recipe with the settings of a trial; AlphaFuse trains half of its width."""
    config = config.with_switches(**settings)
    if config.enhancer == "alphafuse":
        config = config.with_switches(null_width=int(str(settings["width"])) // 2)
    return config
