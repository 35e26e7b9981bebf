"""`python -m benchmarks.fresh`"""

from benchmarks.fresh.measure import main
from grasp.environment import prepare

if __name__ == "__main__":
    prepare()
    main()
