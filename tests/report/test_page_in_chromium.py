"""The page in a browser: no error, every picture, hover, keyboard, sorting, phones, no script."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
LOADED = "[...document.images].map((i) => [i.alt, i.complete && i.naturalWidth > 0])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, and all that it complained about or asked for."""

    def __init__(self, browser: Any, address: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address.as_uri(), wait_until="load")


@pytest.fixture
def opened(browser: Any, run_dir: Path) -> Iterator[Any]:
    """``opened(**options)``: the page in a browser with these options."""
    pages: list[Opened] = []

    def open_page(**options: Any) -> Opened:
        pages.append(Opened(browser, run_dir / "report.html", **options))
        return pages[-1]

    yield open_page
    for each in pages:
        assert each.errors == []
        each.page.context.close()


def facts(page: Any) -> str:
    return page.locator("#stamp-facts").inner_text()


def test_page_loads_without_an_error_or_a_request_and_every_picture_is_there(opened: Any) -> None:
    seen = opened()
    pictures = seen.page.evaluate(LOADED)
    assert len(pictures) >= 10
    assert all(alt and there for alt, there in pictures), pictures
    assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 320)])
def test_axe_finds_nothing_to_object_to(opened: Any, scheme: str, width: int) -> None:
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800}).page
    found = axe.Axe().run(page, options=RULES).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found] == []


def test_pointing_at_the_map_shows_the_stamp_that_lies_there(opened: Any) -> None:
    page = opened().page
    page.locator("#map").scroll_into_view_if_needed()
    marks = page.locator("#map-plot > g").first.locator("path")
    told = set()
    for k in (3, 70):
        box = marks.nth(k).bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        told.add(facts(page))
        drawn = page.evaluate(
            "[...document.querySelectorAll('#stamp-thumbs canvas')].map((c) => new Set("
            "c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size)"
        )
        assert len(drawn) == 2
        assert min(drawn) > 10  # a picture, not a blank
    assert len(told) == 2
    assert "label" in told.pop()


def test_stamps_are_reached_by_keyboard_and_said_aloud(opened: Any) -> None:
    page = opened().page
    page.locator("#map-plot").focus()
    page.keyboard.press("Home")
    first = facts(page)
    page.keyboard.press("ArrowRight")
    assert facts(page) != first
    assert page.locator("#map-status").inner_text().startswith("stamp ")
    page.keyboard.press("Enter")
    kept = facts(page)
    page.locator("#map-plot").hover()
    assert facts(page) == kept
    near = page.locator("#stamp-near button")
    assert near.count() == 6
    near.first.press("Enter")
    assert facts(page) != kept


def test_colours_and_layouts_can_be_chosen_and_a_class_shown_alone(opened: Any) -> None:
    page = opened().page
    before = page.locator("#map-plot").inner_html()
    page.select_option("#map-colour", label="flux [raw units]")
    flux = page.locator("#map-plot").inner_html()
    assert flux != before
    page.select_option("#map-layout", index=1)
    assert page.locator("#map-plot").inner_html() != flux
    page.select_option("#map-colour", label="label")
    page.locator("#map-legend button").first.click()
    faded = page.locator("#map-plot .faded").count()
    assert 0 < faded < page.locator("#map-plot > g path").count()


def test_tables_are_sorted_by_a_click_and_by_keyboard_as_numbers(opened: Any) -> None:
    page = opened().page
    head = page.locator("#code th").nth(1)
    column = "[...document.querySelectorAll('#code tbody')][0].rows"
    values = f"[...{column}].map((row) => Number(row.cells[1].dataset.value))"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.evaluate(values) == sorted(page.evaluate(values))
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert page.evaluate(values) == sorted(page.evaluate(values), reverse=True)


def test_without_javascript_the_essentials_are_there(opened: Any) -> None:
    page = opened(java_script_enabled=False).page
    assert page.locator("#verdict-title").is_visible()
    assert page.locator(".static-map img").is_visible()
    assert not page.locator("#latent-map").is_visible()
    for anchor in ("forecast", "learning", "code", "stamps"):
        assert page.locator(f"#{anchor} img").first.is_visible(), anchor
    assert page.locator("#code tbody tr").first.is_visible()
    assert page.locator("#next pre").first.is_visible()


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_in_one_direction_only(opened: Any, width: int) -> None:
    page = opened(viewport={"width": width, "height": 844}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_is_written_on_a_picture_is_not_shrunk_out_of_sight(opened: Any) -> None:
    page = opened(viewport={"width": 390, "height": 844}).page
    sizes = page.evaluate(
        "[...document.querySelectorAll('figure img')].filter((i) => i.offsetParent)"
        ".map((i) => [i.width / i.getAttribute('width'), i.closest('.paper').tabIndex,"
        " i.width > i.closest('.paper').clientWidth])"
    )
    assert len(sizes) >= 8
    for share, tab_index, is_pushed in sizes:
        assert share >= 0.49
        assert tab_index == 0 or not is_pushed  # by keyboard as well


def test_what_is_printed_has_the_map_and_what_is_folded_in(opened: Any) -> None:
    page = opened().page
    page.emulate_media(media="print")
    assert page.locator(".static-map img").is_visible()
    assert not page.locator("nav").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_names_with_odd_characters_run_nothing(opened: Any) -> None:
    page = opened().page
    heard: list[str] = []
    page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
    for name in ("class", "label"):
        page.select_option("#map-colour", label=name)
    page.locator("#map-plot").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert heard == []
    assert "<script>alert(1)</script>" in page.locator("#map-legend").inner_text()
