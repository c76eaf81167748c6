"""What tests of the pages of runs share: a page as its elements and words, and a model that answers as it is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

from torch import Tensor, nn

HOSTILE = "</title><script>alert('x')</script><img src=https://evil.example/x onerror=alert(1)>\" {{ 7*7 }} $x^2$"


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(page: str) -> Page:
    """No script, nothing from outside, one of each id, words for every picture."""
    seen = Page(page)
    assert not {tag for tag, _ in seen.elements} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in seen.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,", "data:image/png;base64,"))
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt") for a in seen.all("img"))
    assert all(a.get("aria-label") for _, a in seen.elements if a.get("role") in ("img", "region"))
    return seen


class Body(nn.Module):
    """Answers as it is told, on a body with a plan."""

    def __init__(self, backbone: nn.Module, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone, self.answer = backbone, answer
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.answer(images)


HISTORY = [
    {"epoch": e, "step": 10 * e, "train_loss": 2 / e, "val_loss": 2.2 / e, "val_miou": 0.1 * e, "train_miou": 0.1 * e}
    | {"val_delta1": 0.2 * e, "train_delta1": 0.2 * e, "val_rmse": 2 / e, "val_pck": 0.2 * e, "val_oks_ap": 0.1 * e}
    | {"val_map50": 0.1 * e, "val_map": 0.05 * e, "images_per_second": 90.0, "seconds": 2.0}
    for e in range(1, 5)
]
