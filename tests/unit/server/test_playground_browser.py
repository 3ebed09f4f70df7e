"""The playground in a real browser, over engines in memory."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.app import create_app
from server.settings import Settings
from tests.fakes import KNOWN, FakeEngines, ScriptedEngines, fake_served
from tests.http_server import serve_app
from tests.keys import key, keys_file

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make setup-dev)")
expect = playwright.expect
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no browser at {CHROMIUM} (Debian: chromium)")
PATIENCE = 20_000
"""Milliseconds that a busy machine may take for what happens at once on others."""
expect.set_options(timeout=PATIENCE)
REFUSED = "Failed to load resource"
"""What chromium notes of every answer with an error's status. It is no mistake of the page."""
TABS = ("Ask", "Bundle", "What is a quantile?", "Metrics")
HOSTILE = "<img src=x onerror=\"document.title='taken over'\"><b>7"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def playground(engines: FakeEngines, **settings: Any) -> Iterator[str]:
    with serve_app(create_app(Settings(max_n=16, **settings), engines, fake_served())) as url:
        yield f"{url}/"


def answering() -> FakeEngines:
    return ScriptedEngines("answer 3", "answer 9", "answer 1", HOSTILE)


@pytest.fixture
def engines() -> FakeEngines:
    return answering()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeEngines]]:
    """One server for all tests that leave it as it was."""
    engines = answering()
    with playground(engines, calibration_store=tmp_path_factory.mktemp("home") / "calibrations.sqlite") as address:
        yield address, engines


@pytest.fixture
def address(shared: tuple[str, FakeEngines]) -> str:
    return shared[0]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a page in a fresh profile. In the end, nothing may have gone wrong in it or have come from elsewhere."""
    mistakes: list[str] = []
    contexts: list[Any] = []

    def visit(address: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on("console", lambda message: mistakes.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(address) else mistakes.append(request.url))
        with page.expect_response("**/v1/session"):
            page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not [mistake for mistake in mistakes if REFUSED not in mistake]


def ask(page: Any, prompt: str = KNOWN, **fields: str) -> None:
    page.get_by_label("Your question").fill(prompt)
    for label, value in fields.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Ask", exact=True).click()


def use_key(page: Any, name: str) -> None:
    expect(page.locator("#who")).not_to_have_text("Asking the server …")  # after which the page may open the field
    if not page.get_by_label("Key of this server").is_visible():
        page.locator("#key > summary").click()
    page.get_by_label("Key of this server").fill(key(name))
    page.get_by_role("button", name="Use this key").click()


def test_candidates_appear_and_the_selected_one_is_marked(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    ask(page)
    expect(page.get_by_role("status").filter(has_text="Done. Candidate")).to_be_visible()
    rows = page.get_by_role("list", name="Candidates").get_by_role("listitem")
    expect(rows).to_have_count(8)
    expect(rows.first).to_contain_text("selected")
    expect(rows.first).to_contain_text("answer 9")
    expect(rows.first).to_contain_text("reward 9.00")
    expect(page.get_by_text("selected", exact=True)).to_have_count(1)
    expect(page.get_by_role("heading", name="The best of 8")).to_be_visible()
    facts = page.locator("#facts")
    expect(facts).to_contain_text("0.89 on average, which is N/(N+1). The KL is at most 1.20 nats.")
    expect(facts).to_contain_text("8 candidates")
    expect(facts).to_contain_text("10 answers of the reference to this prompt")


def test_the_worst_and_a_single_answer_and_an_early_stop(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    page.get_by_label("Worst of N").check()
    ask(page)
    expect(page.get_by_role("heading", name="The worst of 8")).to_be_visible()
    expect(page.locator("#selected")).to_contain_text("answer 1")
    expect(page.locator("#facts")).to_contain_text("0.11 on average, which is 1/(N+1).")
    page.get_by_label("Standard").check()
    expect(page.get_by_label("Answers, N")).to_be_hidden()
    ask(page)
    expect(page.get_by_role("heading", name="The answer")).to_be_visible()
    expect(page.get_by_role("list", name="Candidates").get_by_role("listitem")).to_have_count(1)
    page.get_by_label("Best of N").check()
    ask(page, **{"Answers, N": "16", "Stop at quantile": "0.2"})
    expect(page.locator("#facts")).to_contain_text("of 16 drawn: an answer was good enough")


def test_what_a_model_says_stays_text(engines: FakeEngines, visit: Callable[..., Any]) -> None:
    with playground(ScriptedEngines(HOSTILE)) as address:
        page = visit(address)
        ask(page, "<script>document.title='taken over'</script>")
        expect(page.locator(".answer")).to_have_text(HOSTILE)
        assert page.locator("#results img, #results b:not(dd b)").count() == 0
        assert page.title() == "InfAlign playground"


def test_it_works_with_the_keyboard_alone(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    press("Tab")
    expect(page.get_by_role("tab", name="Ask")).to_be_focused()
    for keys, tab in (("ArrowRight", 1), ("End", 3), ("ArrowRight", 0), ("ArrowLeft", 3), ("Home", 0)):
        press(keys)
        expect(page.get_by_role("tab", name=TABS[tab], exact=True)).to_be_focused()
        expect(page.get_by_role("tabpanel")).to_have_count(1)  # the others are hidden
        expect(page.get_by_role("tabpanel")).to_have_attribute("aria-labelledby", f"tab-{page.url.split('#')[1]}")
    press("Tab")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type(KNOWN)
    press("Tab")
    press("ArrowRight")
    expect(page.get_by_label("Worst of N")).to_be_checked()
    press("Tab")
    expect(page.get_by_label("Answers, N")).to_be_focused()
    press("ArrowUp")
    press("Enter")
    expect(page.get_by_role("heading", name="The worst of 9")).to_be_visible()


def test_a_key_without_probe_sees_the_upper_half_and_is_told_so(
    engines: FakeEngines, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    with playground(engines, keys=keys_file(tmp_path)) as address:
        page = visit(address)
        expect(page.get_by_role("alert").filter(has_text="This server needs a key.")).to_be_visible()
        use_key(page, "app")
        expect(page.locator("#who")).to_have_text("Key app: generate")
        expect(page.get_by_label("Worst of N")).to_be_disabled()
        expect(page.get_by_text("it takes a key with the role probe, and app has generate")).to_be_visible()
        assert page.locator("#samples").is_hidden()
        ask(page)
        expect(page.get_by_role("list", name="Candidates").get_by_role("listitem")).to_have_count(4)
        expect(page.get_by_text("4 candidates not shown")).to_be_visible()
        assert key("app") not in page.url
        assert page.evaluate("() => localStorage.length") == 0
        assert page.evaluate("() => Object.values(sessionStorage).join()") == key("app")
        page.reload()
        expect(page.locator("#who")).to_have_text("Key app: generate")
        page.locator("#key > summary").click()
        page.get_by_role("button", name="Forget it").click()
        expect(page.get_by_role("alert").filter(has_text="This server needs a key.")).to_be_visible()
        use_key(page, "safety")
        expect(page.get_by_label("Worst of N")).to_be_enabled()


def test_wrong_keys_and_other_roles_are_told_why(
    engines: FakeEngines, tmp_path: Path, visit: Callable[..., Any]
) -> None:
    with playground(engines, keys=keys_file(tmp_path)) as address:
        page = visit(address)
        use_key(page, "nobody")
        expect(page.get_by_text("the key is not known")).to_be_visible()
        use_key(page, "prober")
        expect(page.get_by_text("Asking takes a key with the role generate, and prober has probe.")).to_be_visible()
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
        page.get_by_role("tab", name="Bundle").click()
        expect(page.get_by_text("This takes a key with the role generate, which prober lacks.").first).to_be_visible()


def test_a_limit_says_when_to_try_again(engines: FakeEngines, tmp_path: Path, visit: Callable[..., Any]) -> None:
    with playground(engines, keys=keys_file(tmp_path)) as address:
        page = visit(address)
        use_key(page, "rare")  # two requests a minute, one of which says who we are
        expect(page.locator("#who")).to_have_text("Key rare: generate")
        ask(page)
        expect(page.locator("#selected")).to_be_visible()
        ask(page)
        alert = page.get_by_role("alert").filter(has_text="The server cannot take another request now.")
        expect(alert).to_contain_text("rare has sent 2 requests within a minute")
        expect(alert).to_contain_text("You can try again in")
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_engines_that_are_down_and_a_server_that_is_gone(engines: FakeEngines, visit: Callable[..., Any]) -> None:
    with playground(engines) as address:
        page = visit(address)
        engines.dead = True
        ask(page)
        expect(page.locator("#error")).to_contain_text("The server is not ready.")
        engines.dead = False
        ask(page, "word " * 2000)
        expect(page.locator("#error")).to_contain_text("The server does not accept the request. messages: ")
    ask(page)
    expect(page.locator("#error")).to_contain_text("The server does not answer.")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_cancelling_stops_the_work(shared: tuple[str, FakeEngines], visit: Callable[..., Any]) -> None:
    address, engines = shared
    page = visit(address)
    engines.hang = True
    ask(page)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    while not engines.running:
        page.wait_for_timeout(10)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled. The server stops drawing. 0 of 8 candidates had arrived.")).to_be_visible()
    while engines.running:
        page.wait_for_timeout(10)
    engines.hang = False


BROKEN = [
    ("", "The stream broke off before the answer. 0 of 8"),
    (
        'event: candidate\ndata: {"event": "finished", "index": 2, "completion_tokens": 3}\n\nevent: a',
        "The stream broke off before the answer. 0 of 8",
    ),
    (
        'event: error\ndata: {"error": {"message": "an engine has died"}}\n\n',
        "The server failed while it answered. an engine has died",
    ),
]


def test_a_stream_that_breaks_off_is_told(address: str, visit: Callable[..., Any]) -> None:
    bodies = iter(BROKEN)
    page = visit(address)
    page.route("**/v1/best-of-n", lambda route: route.fulfill(body=next(bodies)[0], content_type="text/event-stream"))
    for _, said in BROKEN:
        ask(page)
        expect(page.locator("#error")).to_contain_text(said)
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_every_tab_fits_a_phone(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address, viewport={"width": 360, "height": 640}, color_scheme="dark", reduced_motion="reduce")
    ask(page)
    expect(page.locator("#selected")).to_be_visible()
    for tab in TABS:
        page.get_by_role("tab", name=tab, exact=True).click()
        expect(page.get_by_role("tabpanel", name=tab, exact=True)).to_be_visible()
        assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_other_tabs_show_what_is_served(engines: FakeEngines, visit: Callable[..., Any]) -> None:
    with playground(engines) as address:
        page = visit(address)
        ask(page)
        expect(page.locator("#selected")).to_be_visible()
        page.get_by_role("tab", name="Bundle").click()
        expect(page.get_by_role("heading", name="The policy fake")).to_be_visible()
        expect(page.get_by_text("K = 10 rewards for each of 1 prompt")).to_be_visible()
        page.get_by_role("tab", name="What is a quantile?").click()
        expect(page.get_by_role("img")).to_have_count(4)
        page.get_by_label("N = 16").check()
        expect(page.get_by_text("The best of 16 draws has the quantile")).to_be_visible()
        page.get_by_label("Worst", exact=True).check()
        expect(page.get_by_text("and 0.06 on average")).to_be_visible()
        page.get_by_role("tab", name="Metrics").click()
        expect(page.get_by_role("img", name="Quantiles of selected candidates, best-of-n: 1 candidate")).to_be_visible()


def test_metrics_are_asked_for_only_while_they_are_seen(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    page.clock.install()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/metrics") else None)
    page.get_by_role("tab", name="Metrics").click()
    expect(page.get_by_text("Seen at")).to_be_visible()
    with page.expect_request("**/metrics"):
        page.clock.run_for(3100)
    expect(page.locator("#panel-metrics dd").first).to_have_text("up")
    page.get_by_role("tab", name="Ask").click()
    seen = len(asked)
    page.clock.run_for(20_000)
    assert len(asked) == seen


def test_it_works_behind_a_path_prefix(engines: FakeEngines, visit: Callable[..., Any]) -> None:
    inner = create_app(Settings(max_n=16), engines, fake_served())

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith("/models/"), scope["path"]
            scope = {**scope, "path": scope["path"].removeprefix("/models")}
        await inner(scope, receive, send)

    with serve_app(proxy) as address:
        page = visit(f"{address}/models/")
        ask(page)
        expect(page.locator("#selected")).to_be_visible()


def test_landmarks_and_controls_have_names(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    for role in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("tab")).to_have_count(len(TABS))
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for role in ("textbox", "radio", "spinbutton", "combobox", "button", "tabpanel", "form"):
        controls = page.get_by_role(role)
        assert controls.count(), role
        for control in controls.all():
            expect(control).to_have_accessible_name(re.compile(r"\S"))
