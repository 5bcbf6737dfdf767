"""The built documentation in a headless browser: what is broken, what does not fit a phone, what is dark on dark.

Nothing is fetched from elsewhere.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urldefrag

import pytest

SITE = Path(__file__).parents[2] / "build" / "site"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]

pytestmark = pytest.mark.site


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    assert (SITE / "index.html").is_file(), "build the documentation first: make docs"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "no browser: install chromium, or name one in CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


LOOK = r"""() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    anchors: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    unnamed: [...document.images].filter(i => !i.alt).map(i => i.src),
    pictures: document.images.length + document.querySelectorAll('svg.drawing[aria-label]').length,
    uncaptioned: [...document.querySelectorAll('article img[src*="figures/"], article svg.drawing')]
        .filter(e => !e.closest('figure')?.querySelector('figcaption')?.textContent.trim())
        .map(e => e.src || e.tagName),
    cut: [...document.querySelectorAll('.md-typeset__scrollwrap')]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60)),
    formulas: document.querySelectorAll('math').length,
    unread: [...document.querySelectorAll('article p, article div.arithmatex, article span.arithmatex')]
        .filter(e => !e.closest('code, pre')).map(e => e.textContent).filter(t => /\\[(\[]|\$\$/.test(t)),
})"""

WIDER = """() => {
    const wide = document.documentElement.clientWidth;
    const beyond = e => e.getBoundingClientRect().right > wide + 1;
    const seen = [...document.querySelectorAll('body *')].filter(beyond);
    const page = document.documentElement.scrollWidth > wide ? seen.slice(0, 3) : [];
    const own = e => { while (e && !/auto|scroll/.test(getComputedStyle(e).overflowX)) e = e.parentElement; return e; };
    const cut = [...document.querySelectorAll('article :is(math, img, svg.drawing, table, pre > code)')]
        .filter(e => beyond(e) && !own(e));
    return [...page, ...cut].map(e => e.outerHTML.slice(0, 80));
}"""

# A picture whose commonest colour is dark, as it is seen on the page, is to have nothing darker in it: text would be
# black on nearly black. The texts of a drawing have to stand out from the page.
DARK = r"""() => {
    document.body.setAttribute('data-md-color-scheme', 'slate');
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= .04 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * x + .7152 * y + .0722 * z;
    };
    const [width, height] = [240, 120];
    const canvas = Object.assign(document.createElement('canvas'), {width, height});
    const context = canvas.getContext('2d', {willReadFrequently: true});
    const fill = colour => { context.fillStyle = colour; context.fillRect(0, 0, width, height); };
    const seen = () => [...Array(width * height).keys()].map(
        (data => i => light(data.slice(4 * i, 4 * i + 3)))(context.getImageData(0, 0, width, height).data));
    const behind = getComputedStyle(document.body).backgroundColor;
    fill(behind);
    const page = seen()[0];
    const wrong = page < .1 ? [] : [`the page is not dark: ${behind}`];
    for (const image of document.querySelectorAll('article img')) {
        fill(behind);
        fill(getComputedStyle(image).backgroundColor);
        context.drawImage(image, 0, 0, width, height);
        const all = seen();
        const counts = {};
        for (const value of all) counts[value.toFixed(2)] = (counts[value.toFixed(2)] || 0) + 1;
        const common = Number(Object.entries(counts).sort((a, b) => b[1] - a[1])[0][0]);
        if (common < .2 && all.filter(v => v < common - .008).length > 20) wrong.push(image.src);
    }
    for (const text of document.querySelectorAll('svg.drawing text:not(.label)')) {
        fill(getComputedStyle(text).fill);
        const own = seen()[0];
        if ((Math.max(own, page) + .05) / (Math.min(own, page) + .05) < 4.5) wrong.push(text.textContent);
    }
    return wrong;
}"""


def visit(browser, url):
    """What a page has, what went wrong while it loaded, what is wider than a phone, and what is dark on dark."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url}"))
    page.on("response", lambda response: response.status >= 400 and wrong.append(f"{response.status}: {response.url}"))
    page.on("request", lambda request: request.url.startswith(("http://127", "data:")) or wrong.append(request.url))
    page.goto(url, wait_until="load")
    found = page.evaluate(LOOK)
    page.set_viewport_size({"width": 390, "height": 844})
    found |= {"wider": page.evaluate(WIDER), "dark": page.evaluate(DARK)}
    page.close()
    return found | {"wrong": wrong}


@pytest.fixture(scope="module")
def pages(browser, address):
    """Every page that can be reached from the first, by its address."""
    found = {}
    waiting = [f"{address}/index.html"]
    while waiting:
        url = waiting.pop()
        if url in found:
            continue
        found[url] = visit(browser, url)
        links = {urldefrag(link).url for link in found[url]["links"]}
        waiting += [link for link in links if link.startswith(address) and link.endswith(".html")]
    return found


def test_every_page_is_reached_and_loads(pages, address):
    built = {path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")} - {"404.html"}
    assert {url.removeprefix(f"{address}/") for url in pages} == built
    assert not {url: page["wrong"] for url, page in pages.items() if page["wrong"]}


def test_no_link_or_anchor_is_broken(pages, address):
    broken = []
    for url, page in pages.items():
        for link in page["links"]:
            target, anchor = urldefrag(link)
            if not link.startswith(address):
                continue
            if target.endswith("/"):
                target += "index.html"
            there = pages.get(target)
            if there is None and not (SITE / target.removeprefix(f"{address}/")).is_file():
                broken.append((url, link))
            elif anchor and there is not None and anchor not in there["anchors"]:
                broken.append((url, link))
    assert not broken


def test_every_picture_shows_and_says_what_it_is(pages):
    assert not {
        url: page["broken"] + page["unnamed"] for url, page in pages.items() if page["broken"] or page["unnamed"]
    }
    assert sum(page["pictures"] for page in pages.values()) >= 3


def test_every_figure_has_a_caption(pages):
    assert not {url: page["uncaptioned"] for url, page in pages.items() if page["uncaptioned"]}


def test_no_page_is_wider_than_a_phone(pages):
    """Tables, code and figures that are wider scroll in their own box."""
    assert not {url: page["wider"] for url, page in pages.items() if page["wider"]}


def test_tables_fit_the_column_of_a_wide_screen(pages):
    assert not {url: page["cut"] for url, page in pages.items() if page["cut"]}


def test_no_figure_is_dark_on_dark(pages):
    assert not {url: page["dark"] for url, page in pages.items() if page["dark"]}


def test_formulas_are_mathml(pages):
    assert sum(page["formulas"] for page in pages.values()) >= 5
    assert not {url: page["unread"] for url, page in pages.items() if page["unread"]}


def test_notebooks_are_shown_with_what_they_wrote(pages, address):
    for name in ("tour", "agent", "evaluate"):
        assert pages[f"{address}/notebooks/{name}.html"]["pictures"] >= 2, name
    assert "full: green" in (SITE / "notebooks/tour.html").read_text(encoding="utf-8")
    for path in (SITE / "notebooks").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"site-packages|/(home|root|Users|tmp|mnt)/\w|Warning:", text), path.stem


RAISES = re.compile(r"Raises:</\w+></p>\s*<ul>(.*?)</ul>", re.DOTALL)


def test_each_error_is_an_item_of_its_own():
    items = []
    for path in (SITE / "api").glob("*.html"):
        for section in RAISES.findall(path.read_text(encoding="utf-8")):
            items += [re.sub(r"(<[^>]+>|\s)+", " ", f"<{item}").strip() for item in section.split("<li")[1:]]
    assert len(items) > 60
    assert not [item for item in items if not re.match(r"\w+ – ", item) or re.search(r"Error ?:", item)]


def test_the_api_shows_nothing_private():
    shown = {path.name: path.read_text(encoding="utf-8") for path in (SITE / "api").glob("*.html")}
    assert len(shown) >= 10
    private = re.compile(r'<span class="n[a-z]*">_\w+|id="[\w.]*\._\w+')
    assert not {name: private.findall(text) for name, text in shown.items() if private.search(text)}
