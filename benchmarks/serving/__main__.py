"""`python -m benchmarks.serving`"""

from benchmarks.serving.measure import main

if __name__ == "__main__":
    main()
