"""`python -m benchmarks.quality`"""

from benchmarks.quality.measure import main
from grasp.environment import prepare

if __name__ == "__main__":
    prepare()
    main()
