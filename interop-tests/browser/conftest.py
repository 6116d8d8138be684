"""What the browser tests stand on: the browser, a page that reports everything unwanted, swarms, a folder for pictures.

Environment, set by scripts/browser.sh: SEPAL, the program; PEER_PYTHON, a python with Petals; CHROMIUM, the browser;
PICTURES, where screenshots go.
"""

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from place import Place
from playwright.sync_api import expect, sync_playwright
from swarm import STARTUP, Swarm

PICTURES = Path(os.environ["PICTURES"])
PATIENCE = STARTUP * 1000  # for what happens in a swarm, in milliseconds
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that root in a container has not; the pages are ours.
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        print(f"chromium {browser.version}")
        yield browser
        browser.close()


class Watched:
    """A page, and everything about it that should not happen."""

    def __init__(self, browser, url, **context):
        self.url = url
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.unwanted, self.outside, self.loads = [], [], 0
        page = self.page
        page.on("pageerror", lambda error: self.unwanted.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.unwanted.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", self._console)
        page.on("request", self._request)
        page.on("load", lambda _: setattr(self, "loads", self.loads + 1))

    def _console(self, message):
        # A node that is gone cannot be asked: that the browser says so is no fault of the page.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.unwanted.append(f"console: {message.text}")

    def _request(self, request):
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc and not request.url.startswith("data:"):
            self.outside.append(request.url)

    def open(self):
        self.page.goto(self.url)
        return self.page

    def answers(self, answer):
        """From now on the node's answers are this one, asked for one by one: there is no stream of events."""
        body = json.dumps(answer)
        self.page.unroute_all()
        self.page.route("**/api/v1/events", lambda route: route.fulfill(status=404))
        self.page.route("**/api/v1/swarm", lambda route: route.fulfill(body=body, content_type="application/json"))

    def picture(self, name):
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)

    def fits(self):
        """Nothing is wider than the window."""
        width, window = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= window, f"the page is {width} pixels wide in a window of {window}"

    def clean(self):
        assert self.unwanted == []
        assert self.outside == []


@pytest.fixture
def watch(browser):
    """Opens pages; at the end of the test none of them may have done anything unwanted."""
    opened = []

    def watch(url, **context):
        opened.append(Watched(browser, url, **context))
        return opened[-1]

    yield watch
    for one in opened:
        one.context.close()
    for one in opened:
        one.clean()


def _swarm(factory):
    return Swarm(factory.mktemp("hub"), os.environ["SEPAL"], os.environ["PEER_PYTHON"])


@pytest.fixture
def swarm(tmp_path_factory, request):
    """A place for nodes. When the test fails, what they said is printed."""
    swarm = _swarm(tmp_path_factory)
    yield swarm
    swarm.end()
    for process in swarm.processes:
        print(process.tail())  # pytest shows it for failed tests only


@pytest.fixture(scope="session")
def lone_url(tmp_path_factory):
    """The page of a server alone in its swarm, for tests that replace the answers."""
    swarm = _swarm(tmp_path_factory)
    yield swarm.serve("demo", "0:8", "--http", "127.0.0.1:0").url
    swarm.end()


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    swarm = _swarm(tmp_path_factory)
    yield Place(swarm)
    swarm.end()


@pytest.fixture(scope="session")
def api(place):
    """Where an API is that asks for no key."""
    return place.api()


@pytest.fixture(scope="session")
def locked(place):
    """Where one is that asks for a key."""
    return place.locked_api()
