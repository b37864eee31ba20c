"""Fetch the published datasets, verified by their git blob ids; nothing of them is in this repository.

Reads   the files of data/sources.py from their public repository, a mirror, or a folder
Writes  data/published/<key>/<file>, under its name only after its blob id is right
        A broken download is continued by the same command.
Try     python -m data.download all
        python -m data.download true_false --from /path/to/folder
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from analysis.base.errors import UserError, unknown
from analysis.base.progress import bar
from analysis.base.script import script, setup_logging
from data import load
from data.sources import BASE_URL, SOURCES, Source

log = logging.getLogger(__name__)

TIMEOUT = 30.0
TRIES = 3
CHUNK = 1 << 16


def blob_id(path: Path) -> str:
    """Return the git blob id of a file, sha1 of ``blob <size>\\0`` and its bytes (``git hash-object``)."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def fetch(source: Source, origin: str) -> Path:
    """Return the verified local file, downloading or copying it if it is not there.

    Args:
        source: one file.
        origin: URL of the published data/ folder, or a local folder with the files.

    Raises:
        UserError: no network, not found, or a file that is not the published one.
    """
    target = load.DATA_DIR / "published" / source.key / source.name
    if target.exists():
        if blob_id(target) == source.blob:
            return target
        raise UserError(f"{target} is not the published file (blob id {blob_id(target)}): move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if origin.startswith(("http://", "https://")):
        _download(f"{origin.rstrip('/')}/{source.path}", part, source)
    else:
        _copy(Path(origin), part, source)
    found = blob_id(part)
    if found != source.blob:
        part.unlink()
        raise UserError(
            f"{source.path} from {origin} has blob id {found}, the published file has {source.blob}: it was "
            "changed or damaged on the way; nothing was kept, try again or use another --from"
        )
    os.replace(part, target)
    return target


def _copy(folder: Path, part: Path, source: Source) -> None:
    places = (folder / source.path, folder / source.key / source.name, folder / source.name)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"--from {folder} holds none of {', '.join(str(p.relative_to(folder)) for p in places)}"
        )
    shutil.copyfile(found, part)


def _download(url: str, part: Path, source: Source) -> None:
    """Download to ``part``, continuing what is there; try again when the connection is cut."""
    for left in reversed(range(TRIES)):
        try:
            _get(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and left:  # the part is as long as the file, or longer: start afresh
                part.unlink(missing_ok=True)
            elif error.code < 500 or not left:
                raise UserError(
                    f"{url}: the server answers {error.code} {error.reason}; {_manual(source)}"
                ) from None
        except (OSError, HTTPException, ValueError) as error:
            if not left:  # URLError is an OSError, a bad URL is a ValueError
                reason = getattr(error, "reason", None) or error
                raise UserError(f"{url} cannot be read ({reason}); {_manual(source)}") from None
        log.warning("%s: the connection broke, going on", source.name)
        time.sleep(0.1)


def _get(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        have = have if answer.status == 206 else 0  # a server without ranges sends everything
        size = int(answer.headers.get("Content-Length") or 0)
        whole = have + size if size else None
        with (
            part.open("ab" if have else "wb") as handle,
            bar(total=whole, initial=have, unit="B", unit_scale=True, desc=part.stem) as shown,
        ):
            while block := answer.read(CHUNK):
                handle.write(block)
                shown.update(len(block))
    if size and part.stat().st_size < have + size:
        raise HTTPException(f"{part.stat().st_size} of {have + size} bytes came")


def _manual(source: Source) -> str:
    return (
        f"by hand: on a machine with a network fetch {BASE_URL}/{source.path}, put it here as "
        f"{load.DATA_DIR / 'published' / source.key / source.name}, or name its folder with --from"
    )


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the files of one key, or of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("key", help=f"all, {', '.join(SOURCES)}")
    parser.add_argument(
        "--from",
        dest="origin",
        default=BASE_URL,
        help="folder or URL that holds the files (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    setup_logging("info")
    if args.key != "all" and args.key not in SOURCES:
        raise unknown("published dataset", args.key, ("all", *SOURCES), "data/sources.py")
    keys = SOURCES if args.key == "all" else (args.key,)
    failed: list[UserError] = []
    for source in dict.fromkeys(source for key in keys for source in SOURCES[key]):
        try:
            print(f"{source.blob}  {fetch(source, args.origin)}")
        except UserError as error:  # the other files are fetched all the same
            failed.append(error)
    if failed:
        raise UserError("; ".join(map(str, failed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
