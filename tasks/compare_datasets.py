"""How well do a model's hidden states separate the classes? Shipped and published datasets side by side.

Reads   data/, also data/published/ where it was downloaded (python -m data.download all)
Writes  results/compare/<model>/<dataset>/ (the preparation of each), and beside them
        datasets.csv and datasets.png
        What exists is kept, so a killed run is resumed by the same command.
Try     python -m tasks.compare_datasets --model smollm2
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cli.flags import base_parser
from analysis.cli.script import script, setup_logging
from analysis.studies.datasets.flags import add_dataset_flags


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare every dataset and compare; see the module's docstring."""
    parser = base_parser(__doc__)
    add_dataset_flags(parser)
    args = parser.parse_args(argv)
    setup_logging(args.log_level)

    from analysis.studies.datasets.command import compare_datasets

    return compare_datasets(args)


if __name__ == "__main__":
    raise SystemExit(main())
