"""The Explorer in a real browser, over the real application and a store with a few users."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

import numpy as np
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serving.answers.search import Search
from serving.http.access import Access
from serving.http.app import create_app
from serving.lookup.online_store import StoreError
from serving.releases.publication import choose_model, publish

pytestmark = pytest.mark.integration

DAY = "1998-03-01"
PLANTED = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
LONG = "Anextraordinarilylongwordwithoutanyplacetobreakit" * 2
ITEM_IDS = ["i1", PLANTED, "i3", LONG, "i5", "i6", " 7, or so", "i8"]
TOKEN = "a-token-for-reading"
PATIENCE_MS = 90_000  # a loaded machine is slow, not wrong
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser(require_program) -> Iterator[Browser]:
    program = require_program("chromium", "chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable[..., Page]]:
    """`open_page(width=360)`: a page. The test fails if it raises errors, breaks its policy or calls another host."""
    contexts, faults = [], []

    def watch(page: Page) -> None:
        def look_at(message) -> None:
            if message.type == "error" and "Failed to load resource" not in message.text:  # a 404 is an answer
                faults.append(message.text)

        page.on("console", look_at)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("request", lambda request: faults.append(request.url) if not is_own(request.url) else None)

    def open_(width: int = 1280, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        watch(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


def is_own(url: str) -> bool:
    return urlsplit(url).hostname == "127.0.0.1"


@pytest.fixture
def put(settings, write_day, make_model) -> Callable[..., str]:
    """`put("one", width=8)`: publish a release with this model; its id."""

    def publish_model(name: str | None = "one", **config: object) -> str:
        write_day(settings, DAY, item_ids=ITEM_IDS)
        model = make_model(settings, name=name, item_ids=ITEM_IDS, **config) if name else None
        return publish(settings, DAY, choose_model(settings, model, None)).release_id

    return publish_model


@pytest.fixture
def start(settings_with, users, run_server) -> Callable[..., str]:
    """`start()`: address of the page of an application that runs in this process."""
    users.users["u1"] = replace(
        users.users["u1"],
        description=f"likes tests {PLANTED}",
        source="llm",
        neighbour_ids=["u2", "gone"],
        neighbour_similarities=np.array([0.75, 0.5], np.float32),
    )
    users.users["u2"] = replace(
        users.users["u1"], user_id="u2", description="likes facts", source="facts", is_tail=True
    )

    def run(access: Access | None = None, **changed: object) -> str:
        settings = settings_with(lookup_timeout_ms=5000, **changed)
        search = Search(settings, open_encoder=lambda _: KnowsTheTexts(app))
        app = create_app(settings, lambda *_: users, poll_seconds=0.05, access=access, search=search)
        return f"http://127.0.0.1:{run_server(app)}/explore"

    return run


class KnowsTheTexts:
    """An encoder that knows the descriptions of the release in force: "about i3" has i3's vector, other texts none."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def encode(self, texts: list[str]) -> np.ndarray:
        items = self._app.state.service.follower.loaded.in_force.items
        rows = [items.row_of.get(text.removeprefix("about ")) for text in texts]
        return np.stack(
            [np.zeros_like(items.semantic_NS[0]) if row is None else items.semantic_NS[row] for row in rows]
        )


def heading(page: Page):
    return page.get_by_role("heading", level=1)


def look_up(page: Page, user_id: str) -> None:
    page.get_by_label("User", exact=True).fill(user_id)
    page.get_by_role("button", name="Show").click()
    expect(heading(page)).to_have_text(f"User {user_id}" if user_id == user_id.strip() else f"User “{user_id}”")


def test_a_user_is_looked_up(put, start, open_page):
    release, page = put(), open_page()
    page.goto(start())

    look_up(page, "u1")

    profile = page.get_by_role("region", name="Profile")
    expect(profile).to_contain_text("likes tests")
    expect(profile).to_contain_text("written by the language model")
    expect(profile).to_contain_text("1998-03-01, 0 h old")
    recommended = page.get_by_role("region", name="Recommendations")
    expect(recommended.locator("ol > li")).to_have_count(6)
    expect(recommended).to_contain_text(release)
    expect(page.get_by_role("region", name="History").get_by_role("link")).to_have_text(["Title i5", "Title i3"])
    expect(page.get_by_role("status")).to_have_text("6 recommendations for user u1")
    assert page.url.endswith("#user=u1")


def test_the_history_has_a_timeline(put, start, open_page, users):
    put()
    address, page = start(), open_page()
    evening = int(datetime(1998, 2, 27, 20, 15, tzinfo=UTC).timestamp())
    users.users["u1"] = replace(users.users["u1"], sequence_times=[evening - 20 * 24 * 3600, evening])

    page.goto(f"{address}#user=u1")

    picture = page.get_by_role("img", name="2 interactions between 1998-02-07 20:15 and 1998-02-27 20:15")
    earlier, later = [picture.locator(f'[data-item="{item}"]').bounding_box() for item in ("i3", "i5")]
    assert earlier["x"] < picture.bounding_box()["x"] + 20
    assert later["x"] > earlier["x"] + 200
    expect(page.locator(".history time")).to_have_text(["1998-02-27", "1998-02-07"])
    page.get_by_role("region", name="History").get_by_role("link", name="Title i3").hover()
    expect(picture.locator(".lit")).to_have_attribute("data-item", "i3")


def test_a_text_built_from_facts_is_labelled(put, start, open_page):
    put()
    page = open_page()

    page.goto(f"{start()}#user=u2")

    profile = page.get_by_role("region", name="Profile")
    expect(profile).to_contain_text("built from facts")
    expect(profile).to_contain_text("tail")


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_pointing_at_a_reason_shows_it_in_the_history(put, start, open_page, by):
    put()
    page = open_page()
    page.goto(f"{start()}#user=u1")
    reason = page.locator(".evidence a").first
    item = reason.get_attribute("data-item")

    reason.hover() if by == "mouse" else reason.focus()

    expect(page.locator(f'.history li[data-item="{item}"]')).to_have_class("lit")
    expect(page.locator(".history .lit:not(.event)")).to_have_count(1)
    assert page.locator(".evidence .bar .value").first.bounding_box()["width"] > 0


def test_what_was_taken_lately_is_a_badge(settings, write_day, make_model, start, open_page):
    write_day(settings, DAY, item_ids=ITEM_IDS, takers={"i6": (0, 0, 7, 7, 7)})
    model = make_model(settings, item_ids=ITEM_IDS, takers_weights=(0, 0, 3.0, 0, 0), vote_weight=3.0)
    publish(settings, DAY, choose_model(settings, model, None))
    page = open_page()

    page.goto(f"{start()}#user=u1")

    badges = {item: page.locator(f'.recommendations > li[data-item="{item}"] > .badges') for item in ("i6", "i8", "i1")}
    expect(badges["i6"]).to_have_text("taken often this week: 7 people")
    expect(badges["i8"]).to_have_text("people with similar recent choices took this in the last days")
    expect(badges["i1"]).to_have_count(0)


def test_a_neighbour_is_one_click_away_and_back_leads_back(put, start, open_page):
    put()
    page = open_page()
    page.goto(f"{start()}#user=u1&k=3")

    near = page.get_by_role("region", name="Similar users").get_by_role("listitem")
    expect(near.first).to_contain_text("2 interactions, 2 items in common. likes facts")
    expect(near.last).to_contain_text("The online store no longer knows this user.")
    page.get_by_role("link", name="u2").click()
    expect(heading(page)).to_have_text("User u2")
    expect(page.locator(".recommendations > li")).to_have_count(3)

    page.go_back()
    expect(heading(page)).to_have_text("User u1")


@pytest.mark.parametrize(
    ("user_id", "changed", "fallback"),
    [("nobody", {}, "unknown_user"), ("u1", {"now": "1998-03-09T00:00:00Z"}, "stale_features")],
)
def test_a_fallback_is_named(put, start, open_page, user_id, changed, fallback):
    put()
    page = open_page()

    page.goto(f"{start(**changed)}#user={user_id}")

    notice = page.locator(".fallback")
    said = {"unknown_user": "the items that are popular now", "stale_features": "older than they should be"}
    expect(notice).to_contain_text(said[fallback])
    expect(notice.locator("code")).to_have_text(fallback)
    expect(page.get_by_role("status")).to_contain_text(f"fallback {fallback}")
    if fallback == "stale_features":
        expect(page.get_by_role("region", name="Profile")).to_contain_text("stale: 7 days old")


def test_a_broken_store_is_named_and_leaves_the_page_usable(put, start, open_page, users):
    put()
    page = open_page()
    users.is_broken = True

    page.goto(f"{start()}#user=u1")

    expect(page.locator(".fallback code")).to_have_text("store_error")
    expect(page.get_by_role("region", name="Profile")).to_contain_text("store_error")
    expect(page.locator(".recommendations > li")).to_have_count(8)


def test_what_the_store_failed_to_give_is_not_called_gone(put, start, open_page, users):
    put()
    address, page = start(), open_page()
    users.users["u2"] = StoreError("an online row lacks description")
    page.goto(f"{address}#user=u1")
    expect(page.get_by_role("region", name="Similar users")).to_contain_text("Not known now: store_error")

    users.users["u1"] = StoreError("an online row lacks description")
    page.goto(f"{address}#")

    expect(page.locator(".problem")).to_have_text("People may be missing: store_error")


def test_categories_and_recent_items_are_taken_as_they_are_one_per_line(put, start, open_page):
    put()
    page = open_page()
    page.goto(f"{start()}#user=u1")
    recommended = page.locator(".recommendations > li")

    page.get_by_text("Options and comparison").click()
    page.get_by_label("Recent items").fill(" 7, or so\ni6")
    page.get_by_role("button", name="Apply").click()
    expect(recommended).to_have_count(4)
    expect(page.get_by_text("not in this release")).to_have_count(0)

    assert page.locator("datalist option").evaluate_all("all => all.map(each => each.value)") == [
        "Comedy",
        "Drama",
        "War",
    ]
    for category in ("Comedy", "Drama"):
        page.get_by_label("Add a category").fill(category)
        page.get_by_label("Add a category").blur()
    expect(page.get_by_label("Any of these categories")).to_have_value("Comedy\nDrama")
    page.get_by_label("Any of these categories").fill("War")
    page.get_by_role("button", name="Apply").click()

    expect(recommended).to_have_count(1)
    expect(page.get_by_label("Recent items")).to_have_value(" 7, or so\ni6")
    assert page.url.endswith("#user=u1&k=10&categories=War&recent=+7%2C+or+so%0Ai6")


def test_texts_are_never_markup(put, start, open_page):
    put()
    page = open_page()
    for address in ("#user=nobody", "#user=u1", "#item=i3"):
        page.goto(f"{start()}{address}")
        expect(page.locator("#view")).to_contain_text(PLANTED)
        assert page.locator("#view img, #view script").count() == 0
        assert "owned" not in page.title().removesuffix("GRASP Explorer").replace(PLANTED, "")


def test_an_item_with_a_strange_id_has_a_view(put, start, open_page):
    put()
    page = open_page()
    page.goto(f"{start()}#user=nobody")

    page.get_by_role("link", name=PLANTED).click()

    expect(heading(page)).to_have_text(f"Title {PLANTED}")
    expect(page.get_by_role("region", name="About")).to_contain_text("70 users have it.")
    page.get_by_role("region", name="Similar items").get_by_role("link").first.click()
    expect(heading(page)).to_have_text("Title i5")


def test_items_are_found_by_meaning(put, start, open_page):
    put()
    page = open_page()
    page.goto(start())

    page.get_by_label("Items about").fill("about i3")
    page.get_by_role("button", name="Search").click()

    expect(heading(page)).to_have_text("Items about “about i3”")
    first = page.locator(".near li").first
    expect(first).to_contain_text("1.00")
    expect(first).to_contain_text("about i3 Comedy War")
    first.get_by_role("link").click()
    expect(heading(page)).to_have_text("Title i3")


def test_two_releases_are_compared_side_by_side(put, start, open_page, settings):
    first, second = put("one"), put("two", width=16)
    candidate = {"name": "wider", "release_id": first, "share": 0}
    (settings.releases / "experiment.json").write_text(json.dumps(candidate))
    page = open_page()
    page.goto(f"{start()}#user=u1")

    page.get_by_text("Options and comparison").click()
    page.get_by_label("Compare with").select_option(first)
    page.get_by_label("Number of items").fill("3")
    page.get_by_role("button", name="Apply").click()

    sides = page.locator(".side-by-side > div")
    expect(sides).to_have_count(2)
    before, after = sides.all()
    expect(before).to_contain_text(second)
    expect(after).to_contain_text(first)
    ranked = [[each.get_attribute("data-item") for each in side.locator("ol > li").all()] for side in (before, after)]
    assert after.locator(".move").all_inner_texts() == [move(item, *ranked) for item in ranked[1]]
    assert before.locator(".move.gone").count() == len(set(ranked[0]) - set(ranked[1]))
    assert ranked[0] != ranked[1]
    assert first in page.url


def move(item: str, before: list[str], after: list[str]) -> str:
    if item not in before:
        return "new"
    by = before.index(item) - after.index(item)
    return "= same place" if by == 0 else f"▲ up {by}" if by > 0 else f"▼ down {-by}"


def test_a_release_that_is_not_loaded_is_an_error(put, start, open_page):
    put()
    page = open_page()

    page.goto(f"{start()}#user=u1&with=1998-01-01-0000000000")

    expect(page.locator(".problem")).to_contain_text("1998-01-01-0000000000")
    expect(page.locator(".recommendations")).to_have_count(1)


def test_without_a_release_the_page_can_try_again(put, start, open_page):
    page = open_page()
    page.goto(start())
    expect(heading(page)).to_have_text("No release yet")

    release = put(None)
    for _ in range(100):  # until the service has taken it up
        time.sleep(0.05)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#view:not([aria-busy])")).to_be_visible()
        if heading(page).inner_text() != "No release yet":
            break

    expect(page.get_by_role("heading", level=2)).to_have_text(["People", "Searches", f"In force: {release}"])


def test_the_start_view_has_people_and_searches_to_click(put, start, open_page):
    put()
    page = open_page()
    page.goto(start())

    people = page.get_by_role("region", name="People")
    expect(people).to_contain_text("likes tests")
    expect(page.get_by_role("region", name="Searches").get_by_role("link")).to_have_text(["Comedy", "Drama", "War"])
    people.get_by_role("link", name="User u1").click()

    expect(heading(page)).to_have_text("User u1")


def test_a_search_without_anything_close_says_so(put, start, open_page):
    put()
    page = open_page()

    page.goto(f"{start()}#q=a+bridge")

    expect(page.locator(".notice")).to_contain_text("Nothing very close to “a bridge”; the nearest:")
    expect(page.locator(".near li").first).to_be_visible()


def test_a_service_that_is_gone_is_an_error(put, start, open_page):
    put()
    page = open_page()
    page.goto(start())
    page.route("**/v1/**", lambda route: route.abort())

    page.get_by_label("User", exact=True).fill("u1")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("status")).to_contain_text("cannot be reached")
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()

    expect(heading(page)).to_have_text("User u1")


def test_the_page_asks_for_a_token_and_keeps_it_in_the_tab(put, start, open_page):
    put()
    page = open_page()
    page.goto(f"{start(Access.from_environment({'GRASP_TOKENS_READ': TOKEN}))}#user=u1")

    expect(heading(page)).to_have_text("Token required")
    page.keyboard.type("not-the-right-one")  # the field has the focus
    page.keyboard.press("Enter")
    expect(heading(page)).to_have_text("The token was refused")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Use token").click()
    expect(heading(page)).to_have_text("User u1")

    page.reload()
    expect(heading(page)).to_have_text("User u1")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
    assert TOKEN not in page.url
    page.get_by_role("button", name="Forget the token").click()
    expect(heading(page)).to_have_text("Token required")
    assert page.evaluate("sessionStorage.length") == 0


def test_everything_works_with_the_keyboard(put, start, open_page):
    put()
    page = open_page()
    page.goto(start())
    expect(heading(page)).to_be_visible()

    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the results"
    assert page.get_by_role("link", name="Skip to the results").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    assert page.evaluate("location.hash") == ""

    page.get_by_label("User", exact=True).focus()
    page.keyboard.type("u1")
    page.keyboard.press("Enter")
    expect(heading(page)).to_have_text("User u1")
    expect(heading(page)).to_be_focused()
    page.keyboard.press("Tab")
    assert focused(page) == "Options and comparison"
    page.keyboard.press("Tab")
    assert focused(page).startswith("Title ")  # the first recommendation: what is closed takes no focus
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.textContent")


VIEWS = ["", "#user=u1", "#user=nobody", "#user=u1&k=3&with=nonsense", "#item=i3", "#q=about+i3"]


def test_a_phone_never_scrolls_sideways(put, start, open_page):
    put()
    page, address = open_page(width=360), start()
    for view in VIEWS:
        page.goto(f"{address}{view}")
        expect(page.locator("#view:not([aria-busy]) h1")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view


CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb(colour).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return rgb(colour)[3] === 255 || !node.parentElement ? colour : behind(node.parentElement);
  };
  const texts = [...document.querySelectorAll("body *")].filter((node) =>
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return texts.map((node) => {
    const style = getComputedStyle(node);
    const colour = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [low, high] = [luminance(colour), luminance(behind(node))].sort((a, b) => a - b);
    return [`${node.tagName}.${node.getAttribute("class")}`, (high + 0.05) / (low + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(put, start, open_page, scheme):
    """WCAG AA asks for a contrast of 4.5."""
    put()
    page, address = open_page(scheme=scheme), start()
    for view in VIEWS:
        page.goto(f"{address}{view}")
        expect(page.locator("#view:not([aria-busy]) h1")).to_be_visible()
        measured = page.evaluate(CONTRASTS)
        assert measured
        assert [each for each in measured if each[1] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 24, 27)") == (scheme == "dark")


@pytest.mark.parametrize("user_id", ["..", " x"])
def test_a_user_with_a_strange_id_is_looked_up(put, start, open_page, users, user_id):
    """No path can carry the first; the second begins with a blank."""
    put()
    address, page = start(), open_page()
    users.users[user_id] = replace(users.users["u1"], user_id=user_id)
    page.goto(address)

    look_up(page, user_id)

    expect(page.get_by_text("likes tests").first).to_be_visible()


def test_an_unknown_id_with_blanks_around_it_is_quoted_and_corrected(put, start, open_page):
    put()
    page = open_page()

    page.goto(f"{start()}#user=+u1+")
    expect(heading(page)).to_have_text("User “ u1 ”")
    page.get_by_role("link", name="u1", exact=True).click()

    expect(heading(page)).to_have_text("User u1")
    expect(page.get_by_text("Did you mean")).to_have_count(0)


def test_the_page_of_the_api_keeps_its_policy_and_sends_requests(start, open_page):
    page = open_page()
    page.goto(start().replace("/explore", "/docs"))

    operation = page.locator("#operations-operations-livez_livez_get")
    operation.get_by_role("button").first.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()

    expect(operation.locator(".live-responses-table").get_by_text("alive")).to_be_visible()
