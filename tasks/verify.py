"""Check result files: of all results, of a model's folder, or of a dataset's.

Reads   every file below FOLDER, with the restricted reader, its checksum and the schema of its kind
Writes  nothing; lock files and temporary files of dead processes are removed
Try     python -m tasks.verify results
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.cli.script import script, setup_logging
from analysis.results.verify import check, dataset_folders, describe_findings


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Check result files; see the module's docstring. Exit code 1 if something is missing or corrupt."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.verify", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results"), help="default: results")
    args = parser.parse_args(argv)
    setup_logging("warning")
    found = [check(folder) for folder in dataset_folders(args.folder)]
    print("\n".join(map(describe_findings, found)))
    well = all(one.well for one in found)
    print("all is well" if well else "something is missing or corrupt: see the lines `run`")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
