"""What a page must not do while it is looked at: ask for anything, say anything on the console, open a dialog."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin

from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Page, Request, Route


class Watch:
    """Records what the pages of a browser context do; blocks every request but those for the report itself."""

    def __init__(self, context: BrowserContext, address: str):
        """address: of the page; a folder's data may be loaded from data/ beside it, and nothing else from anywhere."""
        self.address = address.split("#", 1)[0]
        self.requests: list[str] = []
        self.console: list[str] = []
        self.dialogs: list[str] = []
        context.route("**/*", self._route)
        context.on("request", self._request)
        context.on("console", self._said)
        context.on("dialog", self._dialog)
        context.on("weberror", lambda error: self.console.append(f"uncaught: {error.error}"))
        context.on("page", self._page)

    def _allowed(self, url: str) -> bool:
        url = url.split("#", 1)[0]
        data = urljoin(self.address, "data/")
        return url in (self.address, "about:blank") or url.startswith("data:") or url.startswith(data)

    def _route(self, route: Route) -> None:
        if self._allowed(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _request(self, request: Request) -> None:
        self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")

    def _dialog(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def _page(self, page: Page) -> None:
        page.on("websocket", lambda socket: self.requests.append(socket.url))

    @property
    def foreign(self) -> list[str]:
        """Requests for anything but the report."""
        return [url for url in self.requests if not self._allowed(url)]

    def check(self) -> None:
        assert not self.foreign, f"the page asked for {self.foreign}"
        assert not self.dialogs, f"the page opened dialogs: {self.dialogs}"
        assert not self.console, "\n".join(["the page wrote to the console:", *self.console])


def address(path: Path) -> str:
    """Of a report, which is a file or a folder."""
    return (path / "index.html" if path.is_dir() else path).resolve().as_uri()
