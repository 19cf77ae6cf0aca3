"""Print the table of selections that a run compared, from its comparison.json files."""

from __future__ import annotations

import argparse
from pathlib import Path

from resprout.tasks.report.selection import compared_part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="artifacts of `compare selections`, or copies")
    for folder in parser.parse_args().folders:
        found = compared_part(folder)
        assert found is not None
        print(f"{folder.name}\n")
        for row in (found["heads"], ["---"] * len(found["heads"]), *found["rows"]):
            print(f"| {' | '.join(row)} |")
        print("", *found["sentences"], "", sep="\n")


if __name__ == "__main__":
    main()
