"""The stitched overview and index.html: whole, safe, and honest about what is missing."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import unquote

import matplotlib.image
import numpy as np
import pytest

from analysis.base.errors import UserError
from analysis.figures.style import figure_bytes
from analysis.pages.index import Entry, write_index
from analysis.pages.overview import stitch

HOSTILE = "<script>alert(\"1\")</script> & 'x'"


def picture(path, width=140, height=60, colour=(0.0, 0.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.image.imsave(path, np.full((height, width, 3), colour))
    return path


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())

    def every(self, tag, attribute):
        return [attrs[attribute] for name, attrs in self.tags if name == tag and attribute in attrs]


# ---------------------------------------------------------------- stitch


def test_pictures_stand_in_two_columns_at_their_own_aspect(tmp_path):
    sizes = [(140, 60), (140, 200), (70, 70)]
    paths = [picture(tmp_path / f"{i}.png", *size) for i, size in enumerate(sizes)]
    fig = stitch(paths, "Layer 3")
    frames = [ax.get_window_extent() for ax in fig.axes]
    for (width, height), frame, ax in zip(sizes, frames, fig.axes, strict=True):
        assert frame.width / frame.height == pytest.approx(width / height)
        assert ax.images[0].get_array().shape[:2] == (height, width)
    first, second, third = frames
    assert first.x0 == third.x0 == 0 and first.x1 == pytest.approx(second.x0) and first.y1 == second.y1
    assert third.y1 < second.y0  # the row is as high as its higher picture
    assert min(frame.y0 for frame in frames) >= 0 and fig.get_figwidth() == 14
    assert fig.texts[0].get_text() == "Layer 3" and fig.texts[0].get_window_extent().y0 > first.y1


def test_a_figure_of_7_inches_keeps_every_pixel(tmp_path):
    noise = np.random.default_rng(0).uniform(size=(300, 1400, 3))
    matplotlib.image.imsave(tmp_path / "a.png", noise)
    (tmp_path / "out.png").write_bytes(figure_bytes(stitch([tmp_path / "a.png"], "T"), "png"))
    out, given = (matplotlib.image.imread(tmp_path / name)[..., :3] for name in ("out.png", "a.png"))
    assert out.shape[1] == 2800
    np.testing.assert_allclose(out[80:380, :1400], given, atol=1 / 255)


def test_an_image_that_is_damaged_or_gone_is_named(tmp_path):
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    for name in ("gone.png", "b.png"):
        with pytest.raises(UserError, match=rf"{name} is no readable PNG file"):
            stitch([picture(tmp_path / "a.png"), tmp_path / name], "T")


# ---------------------------------------------------------------- index


def test_every_figure_is_listed_by_group_with_links_that_exist(tmp_path):
    folder = tmp_path / "figures"
    png = picture(folder / "control layer#15.png")
    pdf = folder / "control layer#15.pdf"
    pdf.write_bytes(b"%PDF")
    other = picture(folder / "deep" / "b.png", 20, 10)
    (folder / "summary.csv").write_text("a\n")
    (tmp_path / "report.html").write_text("x")
    entries = [
        Entry("control", "What it shows.", "layer 15", {"png": png, "pdf": pdf}),
        Entry("b", "More.", "layer 2", {"png": other}),
        Entry("c", "Last.", "layer 15", {"png": png}),
    ]
    path = write_index(
        folder, entries, "Figures", {"seed": 4, "packages": {"torch": "2.1", "numpy": 2}, "gpu": None}
    )
    assert path == folder / "index.html"
    page = Page(path)
    links = page.every("a", "href") + page.every("img", "src")
    files = {unquote(link) for link in links if not link.startswith("#")}
    expected = {
        "./control layer#15.png",
        "./control layer#15.pdf",
        "./deep/b.png",
        "./summary.csv",
        "../report.html",
    }
    assert files == expected
    assert all((folder / file).is_file() for file in files)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids) and {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert [word for word in page.words if word in ("layer 15", "layer 2")] == ["layer 15", "layer 2"] * 2
    assert page.every("img", "loading") == ["lazy"] * 3 and page.every("img", "width") == ["140", "140", "20"]
    assert {"torch 2.1, numpy 2", "not known", "4"} <= set(page.words)


def test_hostile_names_are_text_and_links_are_percent_encoded(tmp_path):
    folder = tmp_path / 'fig "ures"'
    image = picture(folder / 'javascript:x\' onerror="y" <b> %41?.png')
    (folder / "<i>&.csv").write_text("a\n")
    entry = Entry(HOSTILE, HOSTILE, HOSTILE, {"png": image})
    page = Page(write_index(folder, [entry], HOSTILE, {HOSTILE: [HOSTILE, 1]}))
    plain = Page(write_index(folder, [Entry("a", "b", "c", {"png": image})], "t", {"d": 1}))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.every("img", "alt") == [HOSTILE] and page.words.count(HOSTILE) >= 5
    src = page.every("img", "src")[0]
    assert src.startswith("./") and not set(src) & set("\"'<> ?#:") and (folder / unquote(src)).is_file()
    assert f"{HOSTILE}, 1" in page.words


def test_a_format_without_a_file_is_left_out(tmp_path):
    folder = tmp_path / "figures"
    svg, pdf = folder / "a.svg", folder / "b.pdf"
    folder.mkdir()
    svg.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    pdf.write_bytes(b"%PDF")
    entries = [
        Entry("a", "A.", "g", {"png": folder / "a.png", "svg": svg}),
        Entry("b", "B.", "g", {"pdf": pdf}),
        Entry("c", "C.", "g", {"png": folder / "c.png"}),
    ]
    page = Page(write_index(folder, entries, "T", {}))
    assert page.every("img", "src") == ["./a.svg"] and "width" not in dict(page.tags)["img"]
    assert {link for link in page.every("a", "href") if "." in link} == {"./a.svg", "./b.pdf"}
    assert (
        "No PNG or SVG to show: open the file below." in page.words and "No PNG or SVG to show." in page.words
    )
    assert not any("report" in link or "tables" in link for link in page.every("a", "href"))


def test_the_page_needs_nothing_from_outside(tmp_path):
    entry = Entry("a", "A.", "g", {"png": picture(tmp_path / "f" / "a.png")})
    text = write_index(tmp_path / "f", [entry], "T", {}).read_text()
    assert not any(word in text for word in ("http:", "https:", "<script", "@import", "url(", "data:"))
    assert "prefers-color-scheme: dark" in text and "1 figure." in text
