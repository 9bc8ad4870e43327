#!/usr/bin/env python3
"""check.py SITE: every link, anchor and picture of the built pages that stays within the site leads somewhere; no page loads
anything from another host; no Markdown is left over in the text; every page but those of sources is searched.

Says each fault on a line; then "N pages, N links".
"""

import html.parser
import json
import pathlib
import re
import sys
import urllib.parse

LEFT_OVER = re.compile(r"\]\(|\|---|^\s*[-*] \*\*|```|\*\*\w|^#+ ", re.M)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.text, self.inside = set(), [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids.update(x for x in (a.get("id"), a.get("name") if tag == "a" else None) if x)
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag in ("img", "script", "source", "iframe") and a.get("src"):
            self.loaded.append(a["src"])
        if tag == "link" and a.get("href") and a.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loaded.append(a["href"])
        if tag in ("code", "pre", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text.append(data)


def faults_of(site):
    pages = {p.relative_to(site).as_posix(): Page(p.read_text()) for p in sorted(site.rglob("*.html"))}
    links = 0
    for name, page in pages.items():
        if name == "404.html":  # its links begin at the root of a host
            continue
        for link in page.links + page.loaded:
            links += 1
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    yield f"{name}: loads {link} from another host"
                continue
            target = (site / name).parent / urllib.parse.unquote(parts.path) if parts.path else site / name
            target = target.resolve()
            if not target.is_relative_to(site) or not target.is_file():
                yield f"{name}: {link} leads nowhere"
            elif parts.fragment and not parts.fragment.startswith("__"):
                there = pages.get(target.relative_to(site).as_posix())
                if there is None or urllib.parse.unquote(parts.fragment) not in there.ids:
                    yield f"{name}: {link}: there is no such anchor"
        left = LEFT_OVER.search("".join(page.text))
        if left:
            yield f"{name}: Markdown is left over: {''.join(page.text)[left.start():left.start() + 60]!r}"
    index = json.loads((site / "search" / "search_index.json").read_text())
    searched = {entry["location"].partition("#")[0] for entry in index["docs"]}
    for name in pages.keys() - searched - {"404.html"}:
        if not name.startswith("source/"):
            yield f"{name}: is not searched"
    print(f"{len(pages)} pages, {links} links")


def main():
    site = pathlib.Path(sys.argv[1]).resolve()
    faults = list(faults_of(site))
    print("\n".join(faults))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
