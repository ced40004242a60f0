"""The page in headless Chromium: a conversation, its cache, its memory, wide and narrow, light and dark.

usage: page.py http://127.0.0.1:PORT [FOLDER FOR SCREENSHOTS]
"""

import pathlib
import shutil
import sys

from playwright.sync_api import sync_playwright

URL = sys.argv[1]
SHOTS = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def say(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_selector("#stop", state="visible")
    page.wait_for_selector("#stop", state="hidden", timeout=120_000)


def shot(page, name):
    if SHOTS:
        page.screenshot(path=SHOTS / f"{name}.png")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    # The machine may be busy.
    page.set_default_timeout(120_000)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(URL)
    # It has begun when it shows a session.
    page.wait_for_selector("#sessions button[aria-current=true]", timeout=120_000)
    page.fill("#session-name", "page")
    page.click("#new-session button")
    page.wait_for_selector("#sessions button[aria-current=true] >> text=page")
    say(page, "My name is Otto, and the code of my bee house is 4417.")
    for text in ["Tell me a long story about a ship in a storm.", "Tell me about honey in old Egypt."]:
        say(page, text)
    say(page, "Tell me about the moon.")
    say(page, "What is the code of my bee house?")
    # What was said first has left the window, and was recalled; it is lit up in the stream.
    page.wait_for_selector("#recalled >> text=4417")
    assert page.locator("#cache .lit").count() >= 1
    assert "tokens/s" in page.inner_text("#speed")
    shot(page, "light")
    page.emulate_media(color_scheme="dark")
    page.fill("#query", "code of the bee house")
    page.press("#query", "Enter")
    page.wait_for_selector("#found button")
    page.locator("#found button", has_text="4417").first.click()
    page.wait_for_selector("#block[open]")
    shot(page, "dark")
    page.click("#block-pin")
    page.wait_for_selector("#pins >> text=4417")
    page.locator("#pins button").first.click()
    page.wait_for_selector("#pins >> text=nothing")
    # A document is read and found.
    document = {"name": "varn.txt", "mimeType": "text/plain"}
    text = "Rain fell on Varn all day.\n\n" * 40 + "The keeper of the lighthouse is called Ilse.\n\n"
    page.set_input_files("#file", {**document, "buffer": text.encode()})
    page.wait_for_selector("#progress-text >> text=varn.txt")
    page.wait_for_selector("#progress", state="hidden")
    page.fill("#query", "lighthouse keeper")
    page.press("#query", "Enter")
    page.wait_for_selector("#found >> text=Ilse")
    # Forgotten.
    page.locator("#found button", has_text="Ilse").first.click()
    page.click("#block-forget")
    page.wait_for_selector("#block[open]", state="detached")
    # An answer that is stopped; the session goes on.
    page.fill("#text", "Count to a thousand, in words.")
    page.press("#text", "Enter")
    page.wait_for_selector("#stop", state="visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    page.set_viewport_size({"width": 390, "height": 844})
    shot(page, "narrow")
    # All of it works without a mouse, and everything has a name.
    for button in page.locator("button").all():
        assert button.get_attribute("aria-label") or button.text_content().strip()
    # Between two steps the server notices that nobody listens any more; until then the session is in use.
    page.wait_for_function(
        "() => fetch('/v1/sessions/page').then((r) => r.json()).then((s) => !s.active)"
    )
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("[aria-label='Delete session page']")
    page.wait_for_selector("[aria-label='Delete session page']", state="detached")
    assert not problems, problems
    assert all(url.startswith(URL) for url in requests), requests
    browser.close()
print("page: ok")
