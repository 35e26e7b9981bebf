"""`python -m benchmarks.generation`"""

from benchmarks.generation.measure import main
from grasp.environment import prepare

if __name__ == "__main__":
    prepare()
    main()
