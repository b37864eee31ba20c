"""Can a model that controls its activations evade a probe?

Probes that tell the dataset's classes apart are fitted on the axis-fitting half, and judged on trial
sentences as they are and under control: after examples with a request to score high or low on one axis.

Reads   results/<model>/<dataset>/axes_layer<l>.pkl, hidden_layer<l>.pkl      (from main_prep.py)
Writes  results/<model>/<dataset>/study_evasion_exp<e>_<axis>_layer<l>.pkl, the states of one experiment
        results/<model>/<dataset>/figures/evasion_<axis>_layer<l>/*.png and summary_evasion.csv
        Experiments that exist are kept, so a killed run is resumed by the same command.
Try     python -m tasks.evasion --model smollm2 --dataset commonsense --axis lr --layer middle
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cli.flags import base_parser
from analysis.cli.script import script, setup_logging
from analysis.studies.evasion.flags import add_evasion_flags


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; see the module's docstring."""
    parser = base_parser(__doc__)
    add_evasion_flags(parser)
    args = parser.parse_args(argv)
    setup_logging(args.log_level)

    from analysis.studies.evasion.command import evasion

    return evasion(args)


if __name__ == "__main__":
    raise SystemExit(main())
