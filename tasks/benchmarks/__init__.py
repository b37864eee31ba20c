"""Benchmarks, see RESULTS.md."""

import utils as utils  # decides how threads wait, which torch reads when it is first imported
