"""A report's page as a browser would read it."""

from html.parser import HTMLParser

from segmenter_bench.page import page
from segmenter_bench.sections import sections

VOID = {"meta", "img", "input", "br", "link", "hr"}


class Outline(HTMLParser):
    """Tags opened and closed, attributes that fetch, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def rendered(*runs):
    text = page("A <title> & more", sections(runs), "segmenter report runs")
    return text, Outline(text)
