"""`python -m benchmarks.descriptions`"""

from benchmarks.descriptions.measure import main

if __name__ == "__main__":
    main()
