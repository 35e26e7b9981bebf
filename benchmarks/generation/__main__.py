"""`python -m benchmarks.generation`"""

from benchmarks.generation.measure import main

if __name__ == "__main__":
    main()
