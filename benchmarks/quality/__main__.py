"""`python -m benchmarks.quality`"""

from benchmarks.quality.measure import main

if __name__ == "__main__":
    main()
