"""Write the report of descriptions again from the measurements of a folder.

    python -m benchmarks.descriptions --out docs/benchmarks/descriptions

Nothing is measured any more: docs/decisions/benchmarks.md says what was found and at which commit it was measured last.
"""

from benchmarks.core import command
from benchmarks.descriptions.report import REPORT

if __name__ == "__main__":
    given = command.new_parser("benchmarks.descriptions", __doc__).parse_args()
    REPORT.write(given.out)
