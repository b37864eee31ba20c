"""Downloads are verified, resumed and never half-kept; what goes wrong is one line that says what to do."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data.download
import data.load
from data.download import blob_id, main
from data.sources import BASE_URL, COMMIT, SOURCES, Source

FILES = {
    "csv/animals.csv": b"statement,label\n"
    + b"".join(b"Cat %d is black.,%d\n" % (i, i % 2) for i in range(999)),
    "csv/cities.csv": b"statement,label\nOslo is a city.,1\n",
    "answers.txt": b"1 / Yes. / sycophancy=1 / agree=1\n2 / No. / sycophancy=0 / agree=0\n",
}
BIG, SMALL, ANSWERS = FILES
KEYS = {"true_false": (BIG, SMALL), "sycophancy": (ANSWERS,)}


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files``; its switches make it fail the way that servers fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.seen: list[tuple[str, str | None]] = []
        """(path, Range header) of every request."""
        self.cuts: list[int] = []
        """The next answers break off after so many bytes."""
        self.statuses: list[int] = []
        """The next answers are these errors."""
        self.ranges = True
        self.lengths = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path, asked = self.path.lstrip("/"), self.headers["Range"]
        self.server.seen.append((path, asked))
        content = self.server.files.get(path)
        start = int(asked[6:-1]) if asked and self.server.ranges else 0  # bytes=<start>-
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
        elif content is None:
            self.send_error(404)
        elif start and start >= len(content):
            self.send_error(416)
        else:
            self.answer(content, start)

    def answer(self, content: bytes, start: int) -> None:
        self.send_response(206 if start else 200)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(content[start:end])  # HTTP/1.0: the connection ends here

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port of this machine."""
    found = Server()
    (thread := threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})).start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """data/published in a temporary folder, with made-up files as the published ones; no proxies."""
    sources = {key: tuple(Source(key, p, blob(FILES[p])) for p in paths) for key, paths in KEYS.items()}
    sources["cities"] = sources["true_false"][1:]  # files may belong to two keys
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(data.load, "SOURCES", sources)
    monkeypatch.setattr(data.download, "SOURCES", sources)
    monkeypatch.setattr(data.download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "data" / "published"


def kept(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command, expect exit code 2, and return its one line."""
    capsys.readouterr()
    assert main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if " WARNING " not in line]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    return errors[0]


# ---------------------------------------------------------------- from a server


def test_all_files_are_fetched_once_and_load(server, folder, capsys):
    assert main(["all", "--from", server.url + "/"]) == 0
    wanted = {
        f"{key}/{path.rsplit('/', 1)[-1]}": FILES[path] for key, paths in KEYS.items() for path in paths
    }
    assert kept(folder) == wanted
    assert [path for path, _ in server.seen] == [BIG, SMALL, ANSWERS]
    assert main(["all", "--from", server.url]) == 0
    assert len(server.seen) == 3  # nothing twice
    out = capsys.readouterr().out.splitlines()
    assert out[2] == f"{blob(FILES[ANSWERS])}  {folder / 'sycophancy' / 'answers.txt'}" and out[3:] == out[:3]
    assert data.load.read_dataset("published/sycophancy").sentences == ["Yes.", "No."]
    assert len(data.load.read_dataset("published/true_false").ids) == 1000


@pytest.mark.parametrize(
    "content", [b"", b"<html>Sign in</html>", FILES[ANSWERS][:-1], FILES[ANSWERS] + b"\n"]
)
def test_a_damaged_file_is_refused_and_nothing_is_kept(server, folder, capsys, content):
    server.files[ANSWERS] = content
    line = refused(capsys, "sycophancy", "--from", server.url)
    assert f"answers.txt from {server.url} has blob id {blob(content)}" in line
    assert f"the published file has {blob(FILES[ANSWERS])}" in line
    assert kept(folder) == {}


@pytest.mark.parametrize("status", [404, 403])
def test_a_file_that_is_not_served_is_one_line_with_the_steps_by_hand(server, folder, capsys, status):
    server.statuses = [status]
    line = refused(capsys, "sycophancy", "--from", server.url)
    assert f"{server.url}/answers.txt: the server answers {status}" in line
    assert f"by hand: on a machine with a network fetch {BASE_URL}/answers.txt" in line
    assert f"put it here as {folder / 'sycophancy' / 'answers.txt'}, or name its folder with --from" in line
    assert kept(folder) == {} and len(server.seen) == 1


def test_the_steps_by_hand_work(server, folder, capsys):
    assert "put it here as " in refused(capsys, "sycophancy", "--from", server.url + "/nowhere")
    (folder / "sycophancy" / "answers.txt").write_bytes(FILES[ANSWERS])
    assert main(["sycophancy", "--from", server.url + "/nowhere"]) == 0


def test_no_network_is_one_line_and_exit_code_2(server, folder, capsys):
    url = server.url
    server.server_close()  # the port is closed from here on
    line = refused(capsys, "sycophancy", "--from", url)
    assert f"{url}/answers.txt cannot be read" in line and "refused" in line and "by hand: " in line
    assert kept(folder) == {}


@pytest.mark.parametrize("url", ["http://[", "http://", "http://127.0.0.1:port", "http://a b"])
def test_a_bad_url_is_one_line(capsys, url):
    assert "answers.txt cannot be read" in refused(capsys, "sycophancy", "--from", url)


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("cut", [1, 100, len(FILES[BIG]) - 1])
def test_a_cut_connection_goes_on_where_it_stopped(server, folder, cut):
    server.cuts = [cut]
    assert main(["true_false", "--from", server.url]) == 0
    assert server.seen[:2] == [(BIG, None), (BIG, f"bytes={cut}-")]
    assert kept(folder)["true_false/animals.csv"] == FILES[BIG]


def test_the_same_command_continues_what_several_cuts_left(server, folder, capsys):
    server.cuts = [100, 10, 1]
    line = refused(capsys, "true_false", "--from", server.url)
    assert f"111 of {len(FILES[BIG])} bytes came" in line
    other = {"true_false/cities.csv": FILES[SMALL]}  # fetched all the same
    assert kept(folder) == {"true_false/animals.csv.part": FILES[BIG][:111], **other}
    assert main(["true_false", "--from", server.url]) == 0
    assert server.seen[4] == (BIG, "bytes=111-")
    assert kept(folder) == {"true_false/animals.csv": FILES[BIG], **other}


def test_a_server_without_ranges_sends_everything_again(server, folder):
    server.ranges, server.cuts = False, [1000]
    assert main(["true_false", "--from", server.url]) == 0
    assert server.seen[1] == (BIG, "bytes=1000-")
    assert kept(folder)["true_false/animals.csv"] == FILES[BIG]


def test_an_answer_of_unknown_length_is_read_to_its_end(server, folder, capsys):
    server.lengths = False
    assert main(["sycophancy", "--from", server.url]) == 0
    server.cuts = [100]  # the cut cannot be seen, but the blob id is wrong
    assert "nothing was kept" in refused(capsys, "true_false", "--from", server.url)
    assert sorted(kept(folder)) == ["sycophancy/answers.txt", "true_false/cities.csv"]


@pytest.mark.parametrize("part", [FILES[ANSWERS], FILES[ANSWERS] * 2])
def test_a_part_as_long_as_the_file_is_fetched_afresh(server, folder, part):
    (folder / "sycophancy").mkdir(parents=True)
    (folder / "sycophancy" / "answers.txt.part").write_bytes(part)
    assert main(["sycophancy", "--from", server.url]) == 0
    assert server.seen == [(ANSWERS, f"bytes={len(part)}-"), (ANSWERS, None)]
    assert kept(folder) == {"sycophancy/answers.txt": FILES[ANSWERS]}


def test_a_part_of_another_file_is_refused_once_and_then_forgotten(server, folder, capsys):
    (folder / "sycophancy").mkdir(parents=True)
    (folder / "sycophancy" / "answers.txt.part").write_bytes(b"else")
    assert "nothing was kept, try again" in refused(capsys, "sycophancy", "--from", server.url)
    assert main(["sycophancy", "--from", server.url]) == 0
    assert kept(folder) == {"sycophancy/answers.txt": FILES[ANSWERS]}


@pytest.mark.parametrize(("statuses", "code"), [([500, 503], 0), ([500, 502, 503], 2), ([416] * 3, 2)])
def test_a_server_in_trouble_is_asked_three_times(server, statuses, code):
    server.statuses = list(statuses)
    assert main(["sycophancy", "--from", server.url]) == code
    assert len(server.seen) == 3


# ---------------------------------------------------------------- from a folder


@pytest.mark.parametrize("layout", ["csv/animals.csv", "true_false/animals.csv", "animals.csv"])
def test_a_folder_may_hold_the_files_in_any_of_three_layouts(tmp_path, folder, layout):
    for path in (layout, layout.replace("animals", "cities")):
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(FILES[BIG if "animals" in path else SMALL])
    assert main(["true_false", "--from", str(tmp_path / "copy")]) == 0
    assert kept(folder) == {"true_false/animals.csv": FILES[BIG], "true_false/cities.csv": FILES[SMALL]}
    assert len(kept(tmp_path / "copy")) == 2  # copied, not moved


def test_a_folder_without_the_file_or_with_a_damaged_one_is_refused(tmp_path, folder, capsys):
    line = refused(capsys, "true_false", "--from", str(tmp_path))
    assert f"--from {tmp_path} holds none of csv/animals.csv, true_false/animals.csv, animals.csv" in line
    (tmp_path / "animals.csv").write_bytes(FILES[SMALL])
    assert "nothing was kept" in refused(capsys, "true_false", "--from", str(tmp_path))
    assert kept(folder) == {}


# ---------------------------------------------------------------- what is there, and names


def test_a_file_of_ones_own_under_that_name_is_not_overwritten(server, folder, capsys):
    (folder / "sycophancy").mkdir(parents=True)
    (folder / "sycophancy" / "answers.txt").write_bytes(b"mine")
    line = refused(capsys, "sycophancy", "--from", server.url)
    assert f"answers.txt is not the published file (blob id {blob(b'mine')}): move it away" in line
    assert kept(folder) == {"sycophancy/answers.txt": b"mine"} and not server.seen


def test_an_unknown_key_lists_the_choices(capsys):
    line = refused(capsys, "moral")
    assert (
        "unknown published dataset 'moral': choose from all, true_false, sycophancy, cities (see data/sources"
        in line
    )


@pytest.mark.parametrize("content", [b"", b"a\n", b"\r\n\0\xff" * 999, b"x" * (1 << 20) + b"y"])
def test_the_blob_id_is_that_of_git(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert blob_id(path) == blob(content)
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True
    )
    assert blob_id(path) == git.stdout.strip()


def test_the_sources_are_pinned_to_one_commit_with_twelve_blob_ids():
    files = {source for key in SOURCES for source in SOURCES[key]}
    assert BASE_URL.endswith(f"/{COMMIT}/data") and len(COMMIT) == 40
    assert (
        len(files) == len({source.blob for source in files}) == len({source.name for source in files}) == 12
    )
    assert all(len(source.blob) == 40 and int(source.blob, 16) for source in files)
