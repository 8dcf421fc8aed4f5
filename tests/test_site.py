"""The documentation builds without a warning; a browser shows its pages, pictures and search."""

import http.server
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    arguments = ["--fail-on-warning", "--keep-going", "--quiet", "--builder", "html"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *arguments, str(ROOT / "docs"), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """The targets of a page's links and pictures, and the anchors that it has."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        link = attributes.get("src" if tag in ("img", "script") else "href")
        if link and tag != "svg":
            self.links.append(link)


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_no_link_inside_is_broken(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(urljoin(f"http://site/{name}", link))
            if not target.startswith("http://site/"):
                continue
            path = unquote(target.removeprefix("http://site/")).partition("?")[0]
            anchors = pages[path].anchors if path in pages else {unquote(anchor)}
            if not (site / path).is_file() or unquote(anchor) not in anchors:
                broken.append((name, link))
    assert len(pages) > 30
    assert broken == []


@pytest.mark.parametrize(
    "name",
    [
        *("fastdrop", "fastdrop_keras", "fastdrop_torch", "fastdrop_torch.functional"),
        *("fastdrop_jax", "fastdrop_jax.nnx", "fastdrop_jax.equinox"),
    ],
)
def test_the_reference_has_every_public_name(pages, name):
    module = importlib.import_module(name)
    public = {
        f"{name}.{one}"
        for one in module.__all__
        if callable(getattr(module, one))  # neither the version nor a module
    }
    assert public
    assert public - pages[f"reference/{name.partition('.')[0]}.html"].anchors == set()


def test_every_kind_is_listed_with_its_paper(site):
    page = (site / "every_kind.html").read_text()
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    for name, paper in [
        ("fastdrop.gaussian_dropout", "Srivastava"),
        ("fastdrop.alpha_dropout", "Klambauer"),
        ("fastdrop_keras.SpatialDropout2D", "Tompson"),
        ("fastdrop_torch.functional.dropout", "as torch.nn.functional.dropout does"),
        ("fastdrop_jax.nnx.Dropout", ""),
    ]:
        [row] = [row for row in rows if f'title="{name}"' in row]
        assert paper in re.sub(r"<.*?>", "", row)


# Opens each page of the site in a frame, asks the search for a word, and writes what it sees.
CHECK = """<!doctype html><meta charset="utf-8"><pre id="found"></pre><script>
const frame = path => new Promise(done => {
  const one = document.createElement("iframe");
  one.width = 1200; one.height = 900; one.src = path;
  one.onload = () => done(one);
  document.body.append(one);
});
(async () => {
  const found = {};
  for (const path of PAGES) {
    const one = await frame(path);
    const page = one.contentDocument;
    found[path] = {
      title: page.title,
      heading: page.querySelector("h1")?.textContent ?? "",
      pictures: page.images.length,
      broken: [...page.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
    };
    one.remove();
  }
  const search = await frame("search.html?q=xoshiro256");
  const finished = () =>
    search.contentDocument.querySelector(".search-summary")?.textContent.includes("finished");
  for (let i = 0; i < 200 && !finished(); i++)
    await new Promise(done => setTimeout(done, 50));
  found.search = [...search.contentDocument.querySelectorAll("#search-results li a")]
    .map(link => link.getAttribute("href"));
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    missing: list[str]

    def log_message(self, *arguments):
        pass

    def send_error(self, code, *arguments):
        self.missing.append(f"{code} {self.path}")
        super().send_error(code, *arguments)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_pages_pictures_and_search(site, pages, tmp_path):
    (site / "check.html").write_text(CHECK.replace("PAGES", json.dumps(sorted(pages))))
    handler = type("Handler", (Server,), {"missing": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    options += ["--virtual-time-budget=120000", "--dump-dom"]
    try:
        done = subprocess.run(
            [CHROMIUM, *options, f"http://127.0.0.1:{server.server_port}/check.html"],
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        server.shutdown()
        server.server_close()
    found = json.loads(re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)[1])
    assert any(link.startswith("stream.html") for link in found.pop("search"))
    assert set(found) == set(pages)
    assert [name for name, page in found.items() if not page["title"]] == []
    # The page of the search has no heading before it has results.
    assert [name for name, page in found.items() if not page["heading"]] == ["search.html"]
    assert [page["broken"] for page in found.values() if page["broken"]] == []
    assert found["how_it_works.html"]["pictures"] == 3
    # The browser asks for an icon, which the site does not have.
    assert [path for path in handler.missing if not path.endswith("/favicon.ico")] == []
