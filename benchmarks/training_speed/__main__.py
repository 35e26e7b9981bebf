"""`python -m benchmarks.training_speed`"""

from benchmarks.training_speed.measure import main
from grasp.environment import prepare

if __name__ == "__main__":
    prepare()
    main()
