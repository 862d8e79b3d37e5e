"""The page in a headless browser: ask about images, draw, stop, switch models."""

import os
import shutil

import pytest
from serve_toys import KEY, encoded, pixels

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",  # a camera that shows a pattern
    "--use-fake-ui-for-media-stream",
]
SHOTS = os.environ.get("CHIASM_SCREENSHOTS")

DROP = """([name, bytes]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
  const options = {bubbles: true, dataTransfer: transfer};
  document.dispatchEvent(new DragEvent("dragover", options));
  document.dispatchEvent(new DragEvent("drop", options));
}"""
PASTE = """(bytes) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "p.png", {type: "image/png"}));
  document.dispatchEvent(new ClipboardEvent("paste", {bubbles: true, clipboardData: transfer}));
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, running):
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    page = context.new_page()
    page.faults = []
    page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(f"{running.url}/#key={KEY}")
    page.wait_for_selector("#model option", state="attached")
    yield page
    assert page.faults == []
    context.close()


def shot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


def answered(page, count):
    page.locator(".turn.assistant .tools, .turn.assistant .error").last.wait_for(timeout=60_000)
    page.locator("#send").wait_for(timeout=60_000)
    assert page.locator(".turn.assistant").count() == count


def send(page, text):
    page.fill("#words", text)
    page.press("#words", "Enter")


def test_the_key_leaves_the_address(page):
    assert "key" not in page.url
    assert page.input_value("#model") == "draws"


def test_a_dropped_and_a_pasted_image_are_sent_and_answered(page):
    for script, argument in (
        (DROP, ["a.png", list(encoded(pixels(1, (60, 40))))]),
        (PASTE, list(encoded(pixels(2, (40, 60))))),
    ):
        before = page.locator("#images li").count()
        page.evaluate(script, argument)
        page.locator("#images li").nth(before).wait_for()
    shot(page, "light-asking")
    send(page, "what colour?")
    answered(page, 1)
    assert page.locator(".turn.user img").count() == 2
    assert page.locator("#images li").count() == 0
    assert page.text_content(".turn.assistant .bubble")
    assert page.text_content("#said")
    shot(page, "light-answered")


def test_an_image_is_drawn_and_drawn_again(page):
    page.check("#draw")
    send(page, "a red circle")
    answered(page, 1)
    first = page.get_attribute("img.drawn", "src")
    assert first.startswith("data:image/png")
    page.click("text=Regenerate")
    answered(page, 1)
    assert page.locator("img.drawn").count() == 1
    assert page.get_attribute("img.drawn", "src") != first
    page.click("#theme")
    shot(page, "dark-drawn")


def test_an_image_is_seen_while_it_is_drawn(page):
    page.evaluate("""() => {
      window.sketches = [];
      new MutationObserver(() => {
        const sketch = document.querySelector(".canvas img");
        if (sketch && sketches.at(-1) !== sketch.src) sketches.push(sketch.src);
      }).observe(document.getElementById("chat"), {childList: true, subtree: true});
    }""")
    page.check("#draw")
    send(page, "a red circle")
    answered(page, 1)
    assert page.evaluate("sketches.length") >= 1
    assert page.locator(".canvas").count() == 0  # the finished image is in its place


def test_two_models_answer_side_by_side(page):
    asked = []
    page.on("request", lambda r: asked.append(r.post_data_json) if r.method == "POST" else None)
    page.select_option("#other", "reads")
    page.evaluate(DROP, ["a.png", list(encoded(pixels(1, (60, 40))))])
    page.wait_for_selector("#images li")
    send(page, "what colour?")
    answered(page, 2)
    boxes = [page.locator(".turn.assistant").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert page.locator(".turn.assistant .who").all_text_contents() == ["draws", "reads"]
    said = page.locator(".turn.assistant .bubble").all_text_contents()
    shot(page, "light-side-by-side")
    send(page, "really?")
    answered(page, 4)
    told = {wanted["model"]: wanted["messages"][1]["content"] for wanted in asked[2:]}
    assert told == dict(zip(("draws", "reads"), said, strict=True))  # each its own
    page.click("text=Regenerate")
    answered(page, 4)
    page.check("#draw")  # only one of them can
    send(page, "a circle")
    answered(page, 6)
    assert page.locator("img.drawn").count() == 1


def test_where_each_model_looked_is_shown_and_hidden(page):
    page.select_option("#other", "reads")
    send(page, "what is it?")
    answered(page, 2)
    assert page.locator("text=Where it looked").count() == 0  # there is no image
    page.evaluate(DROP, ["a.png", list(encoded(pixels(1, (60, 40))))])
    page.wait_for_selector("#images li")
    send(page, "what colour?")
    answered(page, 4)
    said = page.locator(".turn.assistant .bubble").all_text_contents()[2:]
    page.click("text=Where it looked")
    page.wait_for_selector("[aria-pressed=true]")
    assert page.locator(".look").count() == sum(map(bool, said)) > 0
    shown = page.locator(".look img").first
    assert shown.get_attribute("src").startswith("data:image/png")
    assert "looked in image 1" in shown.get_attribute("alt")
    shot(page, "light-looked")
    page.click("text=Where it looked")
    assert page.locator(".look").count() == 0


def rolling(page):
    """Wait until the camera's dialog shows something (the page's policy forbids wait_for_function,
    which evaluates strings)."""
    for _ in range(200):
        if page.evaluate("document.getElementById('camera-shown').videoWidth"):
            return
        page.wait_for_timeout(50)
    pytest.fail("the camera shows nothing")


def test_an_image_is_taken_by_the_camera(page):
    page.click("#camera")
    rolling(page)
    shot(page, "light-camera")
    page.click("#camera-dialog >> text=Cancel")
    assert page.locator("#images li").count() == 0
    page.click("#camera")
    rolling(page)
    page.click("#camera-dialog >> text=Take")
    page.wait_for_selector("#images li")
    send(page, "what is it?")
    answered(page, 1)
    assert page.locator(".turn.user img").count() == 1


def test_without_a_camera_that_is_said(page):
    page.evaluate("""() => {
      navigator.mediaDevices.getUserMedia = async () => { throw new Error("none"); };
    }""")
    page.click("#camera")
    page.wait_for_selector("text=There is no camera")
    assert page.is_visible("#send")


def test_stop_ends_an_answer_and_its_work(page, running):
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    send(page, "what is it?")
    page.click("#stop")
    page.wait_for_selector("text=Stopped.")
    assert page.is_visible("#send")
    page.unroute("**/v1/chat/completions")
    page.click("text=Regenerate")
    answered(page, 1)
    assert running.idle()


def test_switching_models_hides_what_they_cannot(page):
    assert page.is_visible("#draw-label")
    page.select_option("#model", "reads")
    assert not page.is_visible("#draw-label")
    assert page.locator("#model option").all_text_contents() == ["draws", "reads"]
    send(page, "red?")
    answered(page, 1)
    assert page.text_content(".turn.assistant .who") == "reads"


def test_an_error_is_shown_and_the_question_can_be_asked_again(page):
    send(page, "red " * 3000)
    page.wait_for_selector(".turn.assistant .error")
    assert "tokens" in page.text_content(".turn.assistant .error")
    page.click("#fresh")
    assert page.is_visible("#welcome")
    page.faults.clear()  # the browser itself reports the 400


def test_keyboard_alone_is_enough(page):
    page.keyboard.type("what is it?")
    page.keyboard.press("Enter")
    answered(page, 1)
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert {"model", "fresh", "settings-button", "theme"} <= reached


def test_everything_to_press_has_a_name(page):
    page.click("#settings-button")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, textarea")].filter((e) =>
          !e.getAttribute("aria-label") && !e.labels?.length && !e.textContent.trim()
        ).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.get_attribute("#settings-button", "aria-expanded") == "true"
    page.fill("#max_tokens", "3")
    page.fill("#seed", "1")
    send(page, "what is it?")
    answered(page, 1)
    shot(page, "light-settings")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_a_phone_s_width_nothing_runs_over(browser, running, scheme):
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme)
    page = context.new_page()
    page.goto(f"{running.url}/#key={KEY}")
    page.wait_for_selector("#model option", state="attached")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.evaluate(DROP, ["a.png", list(encoded(pixels(1, (300, 200))))])
    page.wait_for_selector("#images li")
    send(page, "what is it, and " + "averyverylongword" * 8)
    answered(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shot(page, f"phone-{scheme}")
    context.close()


def test_a_wrong_key_is_asked_for(browser, running):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{running.url}/#key=wrong")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    page.wait_for_selector("#model option", state="attached")
    context.close()
