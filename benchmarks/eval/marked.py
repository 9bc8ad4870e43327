"""Parts of a document that a script writes: what stands between <!-- name: begin --> and <!-- name: end -->."""
import sys


def write(path, name, lines):
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text()
    if begin not in text or end not in text:
        sys.exit(f"{path}: has no lines '{begin}' and '{end}' to write between")
    path.write_text(text.split(begin)[0] + "\n".join([begin, *lines, end]) + text.split(end, 1)[1])
