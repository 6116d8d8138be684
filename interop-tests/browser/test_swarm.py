"""The page over live swarms of our servers and Petals' own."""

import re
import shlex

import pytest
from answers import MARKUP
from playwright.sync_api import expect
from swarm import MODEL, N_BLOCKS, PREFIX, wait_for


def model(page, prefix=PREFIX):
    return page.locator(f'section.model[data-model="{prefix}"]')


def row(page, node, prefix=PREFIX):
    return model(page, prefix).locator(f'.servers tbody[data-key="{prefix} {node.peer_id}"]')


def coverage(page, prefix=PREFIX):
    """What the cells of the strip say, one after the other."""
    return [cell.get_attribute("title").split(": ")[1] for cell in model(page, prefix).locator(".cell").all()]


@pytest.fixture
def mixed(swarm):
    """A bootstrap node of ours, our server of the first half, Petals' of the second, and a health map."""
    swarm.first = swarm.bootstrap()
    swarm.rust = swarm.serve(MODEL, "0:2", "--public-name", "Ada", initial=swarm.first)
    swarm.petals_one = swarm.petals("2:4", swarm.first, "--public_name", "https://example.org/python/")
    swarm.map = swarm.health(swarm.first)
    return swarm


def test_the_page_follows_a_killed_server_and_one_that_joins_by_the_command_it_shows(mixed, watch):
    watched = watch(mixed.map.url)
    page = watched.open()
    expect(model(page).locator(".model-head .pill")).to_have_text("● Healthy")
    assert coverage(page) == ["1 server"] * N_BLOCKS
    for node, version in [(mixed.rust, re.compile("^sepal ")), (mixed.petals_one, "2.2.0.post1")]:
        expect(row(page, node).locator(".state")).to_have_text("● online")
        expect(row(page, node).locator("[data-label=Version]")).to_have_text(version)
        expect(row(page, node).locator("[data-label=Path]")).to_have_text("direct")
        expect(row(page, node).locator("[data-label=Precision]")).to_have_text(re.compile("f(loat)?32|bf16"))
    expect(model(page).locator(".route")).to_contain_text("tokens/s")
    expect(model(page).locator(".hop")).to_have_count(2)
    expect(page.locator("#link")).to_contain_text("Live")
    watched.picture("live-healthy")
    page.evaluate("window.sameDocument = true")

    mixed.petals_one.kill()
    expect(model(page).locator(".model-head .pill")).to_have_text("✕ Broken")
    hole = model(page).locator(".hole")
    expect(hole.locator("strong")).to_have_text("Blocks 2–3 of 4: nobody serves them.")
    assert coverage(page) == ["1 server"] * 2 + ["nobody serves it"] * 2
    expect(model(page).locator(".c0")).to_have_count(2)
    expect(page).to_have_title("✕ 1 broken – Swarm health")
    watched.picture("live-hole")

    command = shlex.split(hole.locator("code").text_content())
    assert command[0] == "sepal", command
    helper = mixed.ours(*command[1:], "--throughput", "100", "--update-period", "5")
    expect(row(page, helper).locator(".state")).to_have_text("● online")
    expect(model(page).locator(".model-head .pill")).to_have_text("● Healthy")
    expect(hole).to_have_count(0)
    assert coverage(page) == ["1 server"] * N_BLOCKS
    feed = page.locator(".feed")
    expect(feed).to_contain_text("2 blocks held by nobody")
    expect(feed).to_contain_text("every block is held again")
    ping = model(page).locator("svg.pings .edge title", has_text=f"→ …{helper.peer_id[-6:]}")
    expect(ping.first).to_have_text(re.compile(r" ms$"))  # ours says how far the one that may come next is
    watched.picture("live-closed")
    assert page.evaluate("window.sameDocument") and watched.loads == 1, "the page was loaded again"


def test_names_are_text_and_only_addresses_of_the_web_become_links(swarm, watch):
    first = swarm.bootstrap()
    prefix = "<img/src=x/onerror=alert(1)>"
    one = swarm.serve("demo", "0:4", "--dht-prefix", f"demo={prefix}", "--public-name", MARKUP, initial=first)
    two = swarm.serve("demo", "4:8", "--dht-prefix", f"demo={prefix}", "--public-name", "https://example.org/lab/", initial=first)
    three = swarm.serve("demo", "4:8", "--dht-prefix", f"demo={prefix}", "--public-name", "javascript:alert(1)", initial=first)
    stored = swarm.dht_peer(first).ask({
        "op": "store", "key": "_petals.models", "subkey": "<svg/onload=alert(2)>", "expires_in": 600,
        "value": {"num_blocks": 3, "repository": "https://huggingface.co/<script>alert(3)</script>"},
    })
    assert stored["stored"]
    watched = watch(swarm.health(first).url)
    page = watched.open()
    expect(row(page, one, prefix).locator(".name")).to_have_text(MARKUP)
    expect(row(page, three, prefix).locator(".name")).to_have_text("javascript:alert(1)")
    link = row(page, two, prefix).locator(".name a")
    expect(link).to_have_text("example.org/lab")
    expect(link).to_have_attribute("href", "https://example.org/lab/")
    expect(link).to_have_attribute("rel", re.compile("noopener"))
    expect(model(page, prefix).locator(".model-head .pill").first).to_have_text("● Healthy")
    expect(model(page, "<svg/onload=alert(2)>")).to_be_visible()
    watched.picture("live-hostile")
    assert page.locator("img, main script, iframe, object, [onload], [onerror], main svg:not(.pings)").count() == 0
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("window.executed") is None
    addresses = [a.get_attribute("href") for a in page.locator("main a").all()]
    assert all(re.match("https?://|#", address) for address in addresses), addresses


def test_the_page_says_since_when_the_node_is_gone_and_comes_back_with_it(swarm, watch):
    first = swarm.serve("demo", "0:8")
    node = swarm.health(first)
    url = node.url
    watched = watch(url)
    page = watched.open()
    expect(model(page, "demo-hf").locator(".model-head .pill").first).to_have_text("● Healthy")
    expect(page.locator("#trouble")).to_be_hidden()

    node.kill()
    trouble = page.get_by_role("alert")
    expect(trouble).to_have_text(re.compile(r"Disconnected from the node since \d\d:\d\d:\d\d.* What you see is \d+ s old"))
    expect(page.locator("#link")).to_have_text("✕ Disconnected")
    expect(model(page, "demo-hf")).to_be_visible()  # the last facts stay, paler
    expect(page.locator("main.old")).to_have_count(1)
    watched.picture("live-disconnected")

    swarm.health(first, http=url.removeprefix("http://").rstrip("/"))
    expect(page.locator("#link")).to_contain_text("Live")
    expect(trouble).to_be_hidden()
    expect(page.locator("main.old")).to_have_count(0)
    assert watched.loads == 1


def test_a_server_shows_the_map_itself_and_its_ages_count_on(swarm, watch):
    server = swarm.serve("demo", "0:8", "--http", "127.0.0.1:0")
    watched = watch(server.url)
    page = watched.open()
    expect(row(page, server, "demo-hf").locator(".state")).to_have_text("● online")
    expect(page.locator("#foot")).to_contain_text(server.peer_id)
    expect(page.locator(".command code").first).to_contain_text(server.peer_id)
    age = page.locator("#age")
    seen = set()
    wait_for("three ages", lambda: seen.add(age.text_content()) or len(seen) >= 3)
    policy = page.request.get(watched.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
