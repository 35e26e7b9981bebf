"""`python -m benchmarks.serving`"""

from benchmarks.serving.measure import main
from grasp.environment import prepare

if __name__ == "__main__":
    prepare()
    main()
