"""What surrounds every script: as analysis.base.script, with the command that repairs a damaged file."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from analysis.base import script as ground
from analysis.base.errors import UserError
from analysis.base.files import DamagedFile
from analysis.base.script import Main, Script
from analysis.base.script import setup_logging as setup_logging
from analysis.results.commands import repair_command


def script(main: Main) -> Script:
    """Return ``main`` as analysis.base.script.script does; of a damaged file it also names the command."""

    @functools.wraps(main)
    def repairing(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except DamagedFile as error:
            raise UserError(f"{error}: `{repair_command(error.path)}`") from error

    return ground.script(repairing)
