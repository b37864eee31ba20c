"""Causal report: can the model tell how its activations were pushed, when the text says nothing about it?

Every example sentence is read with +v or -v added at one layer, and its label tells which; then a test
sentence is read with +v or -v and the model must report the label. The visible text is the same for both,
so accuracy above 0.5 cannot come from the text. What random directions show as well is not specific to the
axis. See docs/studies.md, and analysis/studies/causal/experiment.py for the arms.

Reads   results/<model>/<dataset>/axes_layer<l>.pkl, hidden_layer<l>.pkl   (from main_prep.py)
Writes  results/<model>/<dataset>/study_causal_exp<e>_<axis>_layer<l>.pkl, one per experiment; what exists is
        kept, so a killed run is resumed by the same command; figures/causal_<axis>_layer<l>.png and .csv
Try     python -m tasks.causal_report --model smollm2 --axis lr --layer middle --n_experiments 12
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cli.flags import base_parser
from analysis.cli.script import script, setup_logging
from analysis.studies.causal.flags import add_causal_flags


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Run the causal report; see the module's docstring."""
    parser = base_parser(__doc__)
    add_causal_flags(parser)
    args = parser.parse_args(argv)
    setup_logging(args.log_level)

    from analysis.studies.causal.command import causal_report

    return causal_report(args)


if __name__ == "__main__":
    raise SystemExit(main())
