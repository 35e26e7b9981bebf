"""Run `retrain` for one day, here and now: train on published features, judge, and release a better model."""

import argparse

from cli.dag_run import run_command
from grasp.days import day_argument
from grasp.environment import prepare
from grasp.preflight import require_feature_store, require_models

DEFAULT_RECIPE = "sasrec_grasp"


def main() -> None:
    parser = argparse.ArgumentParser(prog="grasp retrain", description=__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="last day the model is judged on, YYYY-MM-DD")
    parser.add_argument(
        "--cutoff", type=day_argument, help="last day to train on; default: GRASP_EVALUATION_DAYS before --day"
    )
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="a name from training/fitting/recipes.py")
    parser.add_argument("--force", action="store_true", help="train although the last retraining is recent")
    arguments = parser.parse_args()
    run_command("retrain", "retrain", vars(arguments))


if __name__ == "__main__":
    prepare(require_models, require_feature_store)
    main()
