"""The chat page of the API over a live swarm: three servers, the API, and a key where one is asked for."""

import json
import os
import re
import signal

import pytest
from answers import MARKUP
from place import ANSWER, KEY, QUESTION, ask_api
from playwright.sync_api import expect
from swarm import wait_for
from test_answers import CONTRAST, PHONE



def changed(watched, **fields):
    """From now on the page's requests have these fields as well."""

    def route(route):
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), **fields}))

    watched.page.unroute_all()
    watched.page.route("**/v1/chat/completions", route)


def say(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def last(page):
    """The last answer, once it is whole."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return page.locator("article.model").last


def text_of(article):
    return article.locator(".body").inner_text().strip()


def test_a_conversation_streams_in_and_goes_on_where_the_servers_are(place, api, watch):
    watched = watch(api)
    page = watched.open()
    expect(page.get_by_label("Model", exact=True)).to_have_value("demo")
    page.evaluate("window.busy = 0; new MutationObserver(() => busy += !!document.querySelector('.busy')).observe(document.getElementById('log'), { childList: true, subtree: true, characterData: true })")
    say(page, QUESTION)
    expect(last(page).locator(".body")).to_have_text(ANSWER)
    assert page.evaluate("window.busy") > 1, "nothing was seen before the end"
    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
    whole = json.loads(ask_api(api, "v1/chat/completions", body))
    assert text_of(last(page)) == whole["choices"][0]["message"]["content"].strip()

    hops = page.locator("#route .hop")
    expect(hops).to_have_count(2)
    expect(hops.nth(0)).to_contain_text("Ada")
    expect(hops.nth(1).locator("b")).to_have_text(MARKUP)
    for hop, node, blocks in [(0, place.ada, "blocks 0–3"), (1, place.hostile, "blocks 4–7")]:
        expect(hops.nth(hop)).to_have_attribute("data-peer", node.peer_id)
        expect(hops.nth(hop).locator(".blocks")).to_contain_text(blocks)
        expect(hops.nth(hop).locator(".ms")).to_have_text(re.compile(r"^\d.* ms$"))
    expect(page.locator("#where-brief")).to_have_text(re.compile(r"^2 servers, [\d,.]+ tokens/s$"))

    say(page, "What is 7 plus 5?")
    expect(page.locator("article.model")).to_have_count(2)
    cached = last(page).locator(".facts").get_by_text("cached").inner_text()
    assert int(cached.split()[0]) > 0, cached
    watched.picture("chat-light")
    assert page.locator("img, main script, iframe, object").count() == 0
    assert page.evaluate("window.executed") is None

    page.reload()
    expect(page.locator("article")).to_have_count(4)
    expect(page.locator("article.model .body").first).to_have_text(ANSWER)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    policy = page.request.get(api).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_an_answer_is_stopped_and_made_again(place, api, watch):
    watched = watch(api)
    page = watched.open()
    changed(watched, ignore_eos=True, max_tokens=400, temperature=0)
    say(page, QUESTION)
    expect(page.locator(".busy .body")).to_contain_text("2")
    group = place.ada.process.child.pid
    os.killpg(group, signal.SIGSTOP)  # so that the answer cannot come to its end by itself
    try:
        stop = page.get_by_role("button", name="Stop")
        stop.click()
        expect(stop).to_be_hidden()
        expect(page.locator(".facts").last).to_contain_text("stopped")
    finally:
        os.killpg(group, signal.SIGCONT)
    changed(watched)
    page.get_by_role("button", name="Regenerate").click()
    expect(last(page).locator(".body")).to_have_text(ANSWER)
    expect(page.locator("article")).to_have_count(2)


def test_a_question_that_comes_before_the_models_are_known_is_asked_then(api, watch):
    watched = watch(api)
    held = []
    watched.page.route("**/v1/models", lambda route: held.append(route))
    page = watched.open()
    say(page, QUESTION)
    while len(held) < 2:  # those of the beginning, and those that the question waits for
        page.wait_for_timeout(20)
    expect(page.get_by_label("Message", exact=True)).to_have_value(QUESTION)
    for route in held:
        route.continue_()
    expect(last(page).locator(".body")).to_have_text(ANSWER)


def test_markup_of_a_model_is_text_and_code_is_set_apart(api, watch):
    watched = watch(api)
    page = watched.open()
    schema = {"name": "markup", "schema": {"const": MARKUP}}
    changed(watched, response_format={"type": "json_schema", "json_schema": schema})
    say(page, f"{MARKUP}\n```html\n{MARKUP}\n```")
    expect(last(page).locator(".body")).to_have_text(json.dumps(MARKUP))
    expect(page.locator("article.user pre code")).to_have_text(MARKUP)
    assert page.locator("img, main script, iframe, object").count() == 0
    assert page.evaluate("window.executed") is None


def test_a_server_that_is_killed_is_replaced_and_the_answer_stays_right(place, api, watch):
    spare = place.swarm.serve("demo", "4:8", "--public-name", "Emmy", initial=place.first)
    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "ignore_eos": True, "max_tokens": 400}
    right = json.loads(ask_api(api, "v1/chat/completions", {**body, "temperature": 0}))["choices"][0]["message"]["content"]
    own = place.api()  # knows the spare server from its start
    watched = watch(own)
    page = watched.open()
    changed(watched, ignore_eos=True, max_tokens=400, temperature=0)
    say(page, QUESTION)
    expect(page.locator("#route .hop")).to_have_count(2)
    used = page.locator("#route .hop").nth(1).get_attribute("data-peer")
    lost, other = (spare, place.hostile) if used == spare.peer_id else (place.hostile, spare)
    expect(page.locator(".busy .body")).to_contain_text("2")
    lost.kill()
    expect(page.locator("#changes")).to_contain_text("took over")
    expect(page.locator("#route .hop").nth(1)).to_have_attribute("data-peer", other.peer_id)
    answer = last(page)
    expect(answer.locator(".facts")).to_contain_text("400 tokens")
    assert page.evaluate("chat.messages.at(-1).content") == right
    expect(page.locator(".fault")).to_have_count(0)
    watched.picture("chat-failover")


def test_a_key_is_asked_for_and_kept_in_the_tab_only(locked, watch):
    watched = watch(locked, color_scheme="dark")
    page = watched.open()
    note = page.locator("#key-note")
    expect(note).to_contain_text("wants a key")
    page.get_by_label("API key").fill("0123456789abcdef-of-nobody")
    page.keyboard.press("Enter")
    expect(note).to_contain_text("does not accept")
    watched.picture("chat-key")
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_have_value("demo")
    expect(page.locator("#key-form")).to_be_hidden()
    stored = page.evaluate("JSON.stringify(localStorage) + location.href + document.cookie")
    assert KEY not in stored
    for n in range(4):
        say(page, QUESTION)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        if n < 3:
            expect(page.locator("article.model")).to_have_count(n + 1)
    fault = page.get_by_role("log").get_by_role("alert")
    expect(fault).to_contain_text("Rate limit reached: 3 requests per minute")
    assert page.evaluate(CONTRAST) == []
    watched.picture("chat-limit")
    assert '"status":"ok"' in ask_api(locked, "health")
    metrics = ask_api(locked, "metrics")
    assert re.search(r'sepal_api_requests_total\{model="",route="/v1/chat/completions",status="429"\} 1\b', metrics), metrics
    assert re.search(r'sepal_api_tokens_total\{model="demo",kind="cached"\} [1-9]', metrics), metrics


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_it_fits_and_can_be_read_and_used_without_a_mouse(api, watch, look):
    scheme = "dark" if look == "dark" else "light"
    watched = watch(api, color_scheme=scheme, reduced_motion="reduce", **(PHONE if look == "phone" else {}))
    page = watched.open()
    page.locator("#settings summary").focus()
    page.keyboard.press("Enter")
    page.get_by_label("System prompt").fill("Be brief. " * 20)
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("60")
    say(page, "W" * 120 + "\n```\n" + "x" * 120 + "\n```")
    expect(last(page).locator(".facts")).to_contain_text("token")
    page.evaluate("document.getElementById('where').open = true")
    watched.fits()
    watched.picture(f"chat-settings-{look}")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.getAnimations().length") == 0
    unnamed = "[...document.querySelectorAll('button, a, input, select, textarea, [tabindex]')].filter(e => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()))"
    assert page.evaluate(f"{unnamed}.map(e => e.outerHTML)") == []
    assert page.evaluate("document.querySelectorAll('[id]').length === new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size")
    sent = wait_for("the settings", lambda: page.evaluate("JSON.stringify(request())"))
    assert '"max_tokens":60' in sent and '"temperature":0' in sent and "Be brief." in sent


def test_rubbish_from_the_api_breaks_nothing(api, watch):
    watched = watch(api, **PHONE)
    page = watched.open()
    chunks = [
        "{}", "[]", "null", '{"choices": {}}', '{"choices": [null]}', '{"choices": [{"delta": {"content": 7}}]}',
        '{"sepal": {"route": [null, {}, {"peer": 1, "blocks": "x", "ms_per_step": "y", "name": {}}]}}', '{"usage": 3}',
    ]
    body = "".join(f": note\r\ndata: {chunk}\r\n\r\n" for chunk in chunks)
    for end, fault in [("", "breaks off"), ('data: {"error": {"message": "no servers"}}\n\n', "no servers"), ("data: {\n\n", "cannot be read")]:
        page.route("**/v1/chat/completions", lambda route, _, end=end: route.fulfill(body=body + end, content_type="text/event-stream"))
        say(page, "Hello")
        expect(page.locator(".fault").last).to_contain_text(fault)
        page.unroute_all()
    watched.fits()
    page.get_by_role("button", name="Try again").click()
    expect(last(page).locator(".facts")).to_contain_text("token")
