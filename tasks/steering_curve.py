"""Validation curve: does a push along an axis move the score, and the label that the model reports?

While a sentence is read, alpha training deviations of the axis are added to its tokens at one layer.
Measured are its score at that layer, which must move by alpha, and at later layers; and the label reported
for it after examples with their true labels, which are not pushed. The text is the same for every alpha.

Reads   results/<model>/<dataset>/axes_layer<l>.pkl   (from main_prep.py)
Writes  results/<model>/<dataset>/study_steering_exp<e>_<axis>_layer<l>.pkl, one per experiment; what exists
        is kept, so a killed run is resumed by the same command; figures/steering_<axis>_layer<l>.png and .csv
Try     python -m tasks.steering_curve --model smollm2 --axis lr --layer middle --n_experiments 12
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cli.flags import base_parser
from analysis.cli.script import script, setup_logging
from analysis.studies.causal.flags import add_curve_flags


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the validation curve; see the module's docstring."""
    parser = base_parser(__doc__)
    add_curve_flags(parser)
    args = parser.parse_args(argv)
    setup_logging(args.log_level)

    from analysis.studies.causal.command import steering_curve

    return steering_curve(args)


if __name__ == "__main__":
    raise SystemExit(main())
