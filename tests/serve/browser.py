"""A real browser for the tests of the page: Chromium without a window, driven by selenium."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 30.0
_PASSING = (StaleElementReferenceException, ElementClickInterceptedException)


class Browser:
    """A window with the page. What is looked for is waited for."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        """downloads: where files are saved."""
        self.driver, self.downloads = driver, downloads

    def open(self, url: str, key: str | None = None, **settings: Any) -> None:
        """The page at `url`, as one who was never here; key: of the API. settings: as the page remembers them."""
        self.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}]
        )
        self.command("Emulation.clearDeviceMetricsOverride")
        self.driver.get(f"{url}/health")
        self.run(
            "localStorage.clear(); sessionStorage.clear();"
            "localStorage.setItem('megalm.settings', JSON.stringify(arguments[0]));"
            "if (arguments[1]) sessionStorage.setItem('megalm.key', arguments[1]);",
            settings,
            key,
        )
        self.complaints()
        self.driver.get(url)
        if key:
            self.find("#model option")

    def command(self, name: str, **options: Any) -> Any:
        """One of the browser's own commands."""
        return self.driver.execute_cdp_cmd(name, options)

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """What `condition()` gives, once it is true. What is drawn anew meanwhile is looked for again."""
        return WebDriverWait(self.driver, SECONDS, 0.05, _PASSING).until(lambda _: condition(), what)

    def all(self, css: str) -> list[WebElement]:
        """The elements that are shown, none too."""
        return [one for one in self.driver.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()]

    def find(self, css: str, text: str = "", place: int = 0) -> WebElement:
        """The one that is shown, and holds `text`; place: -1 is the last of several."""

        def found() -> WebElement | None:
            fitting = [one for one in self.all(css) if text in one.text]
            return fitting[place] if len(fitting) > (place if place >= 0 else ~place) else None

        element: WebElement = self.until(found, f"{css} with {text!r}")
        return element

    def click(self, css: str, text: str = "", place: int = 0) -> None:
        """Press it."""
        self.until(lambda: self.find(css, text, place).click() or True, css)

    def type(self, text: str, *keys: str, into: str = "") -> None:
        """Into what has the focus, or into what is named."""
        target = self.find(into) if into else self.driver.switch_to.active_element
        target.send_keys(text, *keys)

    def rewrite(self, into: str, text: str, *keys: str) -> None:
        """Put `text` in the place of what stands there."""
        self.type(Keys.CONTROL + "a" + Keys.NULL, text, *keys, into=into)

    def ask(self, text: str) -> WebElement:
        """The answer to a message, once it has come to its end."""
        self.until(lambda: self.find(".composer textarea").is_enabled())
        self.type(text, Keys.ENTER, into=".composer textarea")
        return self.answer()

    def answer(self) -> WebElement:
        """The last one, once it is whole."""
        self.until(
            lambda: self.all('.answer[aria-busy="false"]') and not self.all('.answer[aria-busy="true"]')
        )
        return self.find(".answer", place=-1)

    def last_text(self) -> str:
        """The text of the last answer."""
        return self.find(".answer .answer-body", place=-1).text

    def remember(self, **settings: Any) -> None:
        """Change what the page remembers of its settings."""
        self.run(
            "const before = JSON.parse(localStorage.getItem('megalm.settings'));"
            "localStorage.setItem('megalm.settings', JSON.stringify({...before, ...arguments[0]}));",
            settings,
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """JavaScript in the page; `return` gives something back, `await` can be used."""
        return self.driver.execute_script(f"return (async () => {{ {script} }})()", *arguments)

    def toast(self, text: str) -> None:
        """Wait for a message to the reader."""
        self.find(".toast", text)

    def focused(self) -> str:
        """The name of what has the focus."""
        return str(self.driver.switch_to.active_element.accessible_name)

    def complaints(self) -> list[str]:
        """Errors of scripts and what the page's policy has stopped, since the last call; answers of the server apart."""
        told = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [line for line in told if "Failed to load resource" not in line]

    def strangers(self) -> list[str]:
        """What was asked of other servers than the page's."""
        script = "return performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith(location.origin))"
        found: list[str] = self.run(script)
        return [name for name in found if not name.startswith("blob:")]


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser that saves files in `folder`; the test is skipped where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None or (driver := shutil.which("chromedriver")) is None:
        pytest.skip("no Chromium with its driver here (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,860"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        window.set_script_timeout(SECONDS)
        yield Browser(window, folder)
    finally:
        window.quit()
