"""The page over answers that a swarm on one machine does not give, in both themes and on a phone."""

import copy

import answers
import pytest
from playwright.sync_api import expect

SHAPES = {"healthy": answers.healthy, "holes": answers.holed, "large": answers.large, "huge": lambda: answers.large(100, 126), "nothing": answers.nothing}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def shown(watched):
    """The page once it has drawn an answer."""
    page = watched.open()
    expect(page.locator("#main")).to_have_attribute("aria-busy", "false")
    return page


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_swarm_fits(lone_url, watch, shape, look):
    scheme = "dark" if look == "dark" else "light"
    watched = watch(lone_url, color_scheme=scheme, **(PHONE if look == "phone" else {}))
    watched.answers(SHAPES[shape]())
    shown(watched)
    watched.fits()
    watched.picture(f"{shape}-{look}")


def test_rubbish_in_any_place_breaks_nothing(lone_url, watch):
    watched = watch(lone_url, **PHONE)
    watched.answers(answers.healthy())
    page = shown(watched)
    for answer in answers.rubbish(150):
        page.evaluate("answer => { page.swarm = null; accept(answer); }", answer)
        assert page.locator("#foot").inner_text() != ""
        watched.clean()
    watched.fits()
    assert page.evaluate("window.executed") is None
    assert page.locator("img, main script, iframe, object").count() == 0


def test_an_old_answer_is_called_stale(lone_url, watch):
    answer = answers.healthy()
    answer["updated"] -= 600
    watched = watch(lone_url)
    watched.answers(answer)
    page = shown(watched)
    expect(page.locator("#link")).to_have_text("◐ Stale")
    expect(page.get_by_role("alert")).to_contain_text("What you see is 10 min old. The node answers, but has not looked at the swarm since")


def test_without_a_stream_the_page_asks_again_and_again(lone_url, watch):
    answer = answers.healthy()
    answer["refresh_seconds"] = 1
    watched = watch(lone_url)
    watched.answers(answer)
    page = shown(watched)
    expect(page.locator("#link")).to_contain_text("Polling")
    later = copy.deepcopy(answer)
    later["models"][1]["servers"], later["models"][1]["coverage"], later["models"][1]["state"] = [], [0] * 8, "broken"
    later["updated"] += 1
    watched.answers(later)
    expect(page.locator(".feed")).to_contain_text("is gone")


def test_a_node_that_has_not_looked_yet_is_waited_for(lone_url, watch):
    watched = watch(lone_url)
    watched.answers({**answers.nothing(), "updated": 0})
    page = watched.open()
    expect(page.locator("#link")).to_have_text("◐ Collecting")
    watched.answers(answers.nothing())
    expect(page.get_by_role("heading", name="No models yet")).to_be_visible()
    expect(page.locator(".empty code")).to_contain_text("sepal serve MODEL --initial-peers")


def test_everything_can_be_done_with_the_keyboard(lone_url, watch):
    watched = watch(lone_url)
    watched.answers(answers.holed())
    page = shown(watched)
    strip = page.locator(".strip").first
    strip.focus()
    for key in ["ArrowRight", "ArrowRight", "End"]:
        page.keyboard.press(key)
    expect(page.locator(".readout").first).to_contain_text("Block 79: nobody serves it")
    page.locator(".who").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".who").first).to_have_attribute("aria-expanded", "true")
    expect(page.locator(".more").first).to_contain_text("Record expires")
    unnamed = "[...document.querySelectorAll('button, a, input, [role=button], [tabindex]')].filter(e => !(e.getAttribute('aria-label') || e.textContent.trim()))"
    assert page.evaluate(f"{unnamed}.map(e => e.outerHTML)") == []


def test_a_command_is_copied_whole(lone_url, watch):
    watched = watch(lone_url, permissions=["clipboard-read", "clipboard-write"])
    answer = answers.holed()
    watched.answers(answer)
    page = shown(watched)
    page.locator(".hole button[data-do=copy]").first.click()
    expect(page.locator(".hole button[data-do=copy]").first).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == answer["models"][0]["holes"][0]["fill"]


def test_the_theme_is_chosen_and_kept(lone_url, watch):
    watched = watch(lone_url, color_scheme="light")
    watched.answers(answers.healthy())
    page = shown(watched)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    theme = page.get_by_role("button", name="Theme")
    theme.click()
    theme.click()
    expect(theme).to_have_text("● dark")
    assert page.evaluate(background) != light
    page.reload()
    expect(theme).to_have_text("● dark")


CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === undefined || c[3] > 0.99) return c; } return [255, 255, 255]; };
  const pale = [];
  for (const e of document.querySelectorAll("main *, header *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.closest("svg, [aria-hidden=true]") || getComputedStyle(e).backgroundImage !== "none") continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) pale.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 120)}`);
  }
  return pale;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(lone_url, watch, scheme):
    watched = watch(lone_url, color_scheme=scheme)
    for shape in [answers.holed, answers.large, answers.healthy]:
        watched.answers(shape())
        assert shown(watched).evaluate(CONTRAST) == []


def test_nothing_moves_for_those_who_want_no_motion(lone_url, watch):
    watched = watch(lone_url, reduced_motion="reduce")
    watched.answers(answers.holed())
    page = shown(watched)
    assert page.evaluate("document.getAnimations().length") == 0
