"""The built documentation in a headless browser: no broken link, anchor or picture, nothing fetched elsewhere."""

import functools
import http.server
import os
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


def visit(browser, url):
    """The links, anchors and broken pictures of a page, and what went wrong while it loaded."""
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url}"))
    page.on("response", lambda response: response.status >= 400 and wrong.append(f"{response.status}: {response.url}"))
    page.on("request", lambda request: request.url.startswith(("http://127", "data:")) or wrong.append(request.url))
    page.goto(url, wait_until="networkidle")
    found = page.evaluate(
        """() => ({
            links: [...document.querySelectorAll('a[href]')].map(a => a.href),
            anchors: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
            broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
            unnamed: [...document.images].filter(i => !i.alt).map(i => i.src),
            pictures: document.images.length,
        })"""
    )
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
