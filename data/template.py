"""Make the skeleton of a dataset of your own.

Writes  data/custom/<name>/sentences.csv, data/custom/<name>/README.md; never over existing files
Try     python -m data.template mood
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from analysis.base.errors import UserError
from analysis.base.files import save_bytes
from analysis.base.script import script
from data import load

CSV = """\
id,group,sentence,label
1a,1,"I closed the window, since it rained.",0
1b,1,"I broke the window, since it rained.",1
"""
README = """\
# {name}

- Where the sentences come from, and their licence:
- What label 1 and label 0 mean, and who judged it:
- What a group is (sentences of one group never straddle the split):
- Known limits:
"""


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Write the skeleton."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", help="letters, digits, _ and -; becomes the key custom/<name>")
    name = parser.parse_args(argv).name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"name {name!r}: use letters, digits, _ and - only")
    folder = load.DATA_DIR / "custom" / name
    if folder.exists():
        raise UserError(f"{folder} exists already: take another name, or edit it")
    save_bytes(CSV.encode(), folder / "sentences.csv")
    save_bytes(README.format(name=name).encode(), folder / "README.md")
    print(f"edit {folder / 'sentences.csv'} and {folder / 'README.md'}, then use --dataset custom/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
