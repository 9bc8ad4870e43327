"""The C++ reference: Doxygen reads the public headers, and each room (folder) of include/lagkv becomes a page."""

import pathlib
import re
import shutil
import subprocess
import textwrap
import xml.etree.ElementTree as ET

ROOMS = {  # page: title, what it is about, its headers
    "compress": ("Compress", "The calls that an engine makes, and what they return.",
                 ["compress", "accumulate", "methods", "methods_with_eigen", "result", "workspace"]),
    "cache": ("Cache", "A layer, what a host may offer beside it, and the cursor.", ["cache/"]),
    "view": ("Views", "Where the rows of a cache lie in the host's memory, and their element types.", ["view/"]),
    "policy": ("Policies", "Strings, options and budgets.", ["policy/"]),
    "plan": ("Plans and moves", "What stays, as data, and the moves that make it so.", ["plan/"]),
    "score": ("Methods", "One method, one file: a struct of options whose call gives the scores.", ["score/"]),
    "select": ("Selectors", "From scores to a plan.", ["select/"]),
    "transform": ("Transforms", "From scores to scores.", ["transform/"]),
    "attention": ("Attention", "Attention of offered queries, and statistics of queries to come.", ["attention/"]),
    "rows": ("Rows", "For methods of your own: rows as a scorer reads them.", ["rows/"]),
    "adapters": ("Adapters", "llama.cpp, Eigen, mdspan, DLPack. None is in lagkv.hpp.", ["adapters/"]),
}
COLUMNS = 100


def pages(root):
    xml = read(root)
    out = {}
    listed = []
    for page, (title, about, parts) in ROOMS.items():
        headers = [h for part in parts for h in sorted(xml.headers) if h == f"lagkv/{part}.hpp" or h.startswith(f"lagkv/{part}")
                   and part.endswith("/")]
        body = "".join(header(xml, root, h) for h in headers)
        out[f"reference/{page}.md"] = f"# {title}\n\n{about}\n\n{body}"
        listed.append(f"| [{title}]({page}.md) | {about} | {', '.join(f'`{h}`' for h in headers)} |\n")
    out["reference/index.md"] = ("# Reference\n\nMade from the comments of the headers and from the docstrings.\n\n"
                                 "- **C++**: the pages below. `#include <lagkv/lagkv.hpp>` has all but the adapters and what "
                                 "needs Eigen.\n- **C**: [lagkv.h](c.md)\n- **Python**: [lagkv](python.md)\n\n"
                                 "| page | what it has | headers |\n|---|---|---|\n" + "".join(listed))
    return out


# ---- Doxygen ------------------------------------------------------------------------------------------------------------


class Xml:
    """headers: path below include/ -> its compound; classes: id -> its compound; members: path -> those of namespaces."""

    def __init__(self, folder):
        self.headers, self.classes, self.members = {}, {}, {}
        for file in folder.glob("*.xml"):
            for compound in ET.parse(file).getroot().iter("compounddef"):
                kind = compound.get("kind")
                if kind == "file":
                    self.headers[below_include(compound.find("location").get("file"))] = compound
                elif kind in ("class", "struct", "union", "concept"):
                    self.classes[compound.get("id")] = compound
                elif kind == "namespace":
                    for member in compound.findall("sectiondef/memberdef"):
                        self.members.setdefault(below_include(declared_at(member).get("file")), []).append(member)


def below_include(path):
    return path.split("include/", 1)[-1]


def declared_at(member):
    """Its location: that of the declaration, where Doxygen has seen a body too."""
    at = member.find("location")
    return {"file": at.get("declfile") or at.get("file"), "line": at.get("declline") or at.get("line")}


def read(root):
    if shutil.which("doxygen") is None:
        raise FileNotFoundError("doxygen: must be installed (apt: doxygen)")
    work = root / "build" / "site-xml"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    settings = (root / "site" / "Doxyfile").read_text() + f"\nOUTPUT_DIRECTORY = {work}\n"
    said = subprocess.run(["doxygen", "-"], input=settings, text=True, cwd=root, capture_output=True)
    if said.returncode != 0 or said.stderr.strip():
        raise RuntimeError(f"doxygen: {said.stderr}")
    return Xml(work / "xml")


# ---- pages --------------------------------------------------------------------------------------------------------------


def header(xml, root, path):
    """A header: what its first comment says, then its classes and functions."""
    compound = xml.headers[path]
    entries = []  # (line, name, markdown)
    for inner in compound.findall("innerclass"):
        c = xml.classes.get(inner.get("refid"))
        if c is not None and documented(c):
            name = tidy(c.findtext("compoundname").removeprefix("lagkv::"))
            entries.append((int(c.find("location").get("line")), name, class_of(c, name)))
    for c in xml.classes.values():
        if c.get("kind") == "concept" and below_include(c.find("location").get("file")) == path:
            name = c.findtext("compoundname").removeprefix("lagkv::")
            entries.append((int(c.find("location").get("line")), name, concept_of(c)))
    for member in xml.members.get(path, []):
        if documented(member) and member.get("kind") in ("function", "variable", "typedef", "enum"):
            entries.append((int(declared_at(member)["line"]), qualified(member), member_of(member)))
    text = f"## {path.split('/', 1)[1]}\n\n{first_comment(root / 'include' / path)}\n\n"
    by_name = {}  # overloads share a heading; a declaration and its definition are one
    for _, name, markdown in sorted(entries, key=lambda e: e[0]):
        by_name.setdefault(name, {})[markdown] = None
    return text + "".join(f"### {escaped(name)}\n\n{''.join(all_of)}" for name, all_of in by_name.items())


def qualified(member):
    """A member's name, with its namespace below lagkv."""
    name = member.findtext("name")
    full = (member.findtext("qualifiedname") or name).removeprefix("lagkv::")
    return full if full.endswith(name) else name


def first_comment(path):
    text, shown = "", ""
    for line in path.read_text().splitlines():
        if not line.startswith("//"):
            break
        line = line.removeprefix("//")
        if line.startswith("   "):
            shown += line.strip() + "\n"
        else:
            text += line.strip() + " "
    return escaped(text.strip().removeprefix("Part of lagkv (MIT). ")) + (f"\n\n```cpp\n{shown}```" if shown else "")


def documented(element):
    return any(words(element.find(part)) for part in ("briefdescription", "detaileddescription")) or any(
        documented(m) for m in element.findall("sectiondef/memberdef") if m.get("prot") == "public")


def member_of(member):
    declared = {"function": function, "enum": enumeration}.get(member.get("kind"), plain)(member)
    return code(declared) + description(member)


def concept_of(compound):
    text = re.sub(r"\s+", " ", "".join(compound.find("initializer").itertext())).replace("lagkv::", "")
    return code(wrapped(text.strip() + ";" if not text.strip().endswith(";") else text.strip())) + description(compound)


def class_of(compound, name):
    """The class with its public members, each under its comment."""
    lines = template(compound) + [f"{compound.get('kind')} {name} {{"]
    shut = []
    for member in compound.findall("sectiondef/memberdef"):
        if member.get("prot") != "public" or member.get("kind") == "friend" or member.findtext("name").startswith("~"):
            continue
        if member.get("kind") == "function" and "= delete" in (member.findtext("argsstring") or ""):
            continue
        said = words(member.find("briefdescription")) + words(member.find("detaileddescription"))
        shown = {"function": function, "enum": enumeration}.get(member.get("kind"), plain)(member)
        block = [f"  /// {line}" for text in said for line in textwrap.wrap(text, COLUMNS - 6)]
        block += ["  " + line for line in shown.split("\n")]
        if said and shut:
            block.insert(0, "")
        shut += block
    return code("\n".join(lines + shut + ["};"])) + description(compound)


def template(element):
    parameters = element.find("templateparamlist")
    if parameters is None:
        return []
    parts = []
    for p in parameters.findall("param"):
        kind, name, default = flat(p.find("type")), p.findtext("declname") or "", flat(p.find("defval"))
        parts.append(f"{kind} {name}".strip() + (f" = {default}" if default else ""))
    return [f"template <{', '.join(parts)}>"]


def function(member):
    kind = flat(member.find("type"))
    arguments = re.sub(r"(?<=[\w>])=(?=[\w:{])", " = ", (member.findtext("argsstring") or "").replace("lagkv::", ""))
    before = "static " if member.get("static") == "yes" else ""
    before += "explicit " if member.get("explicit") == "yes" and "explicit" not in kind else ""
    return wrapped("\n".join(template(member) + [f"{before}{kind} {member.findtext('name')}".strip() + tidy(arguments) + ";"]))


def plain(member):
    initial = flat(member.find("initializer"))
    if len(initial) > COLUMNS or "\n" in initial:
        initial = ""
    text = tidy(member.findtext("definition") or "").replace("lagkv::", "")
    if member.get("kind") == "variable":  # without the class before the name
        text = f"{flat(member.find('type'))} {member.findtext('name')}{member.findtext('argsstring') or ''}"
        text = ("static " if member.get("static") == "yes" and not text.startswith("static") else "") + text
    return wrapped(text + ("" if initial.startswith("{") else " ") * bool(initial) + initial + ";")


def enumeration(member):
    values = [(v.findtext("name"), words(v.find("briefdescription")) + words(v.find("detaileddescription")))
              for v in member.findall("enumvalue")]
    name = "enum " + ("class " if member.get("strong") == "yes" else "") + member.findtext("name")
    if not any(said for _, said in values):
        return wrapped(f"{name} {{ {', '.join(v for v, _ in values)} }};")
    return "\n".join([name + " {"] + [f"  {v},{'  ///< ' + ' '.join(said) if said else ''}" for v, said in values] + ["};"])


# ---- text ---------------------------------------------------------------------------------------------------------------


def flat(element):
    return "" if element is None else tidy(re.sub(r"\s+", " ", "".join(element.itertext())).strip().replace("lagkv::", ""))


def tidy(text):
    text = re.sub(r"\b(inline|constexpr|LAGKV_FN|LAGKV_EDGE|typedef) ", "", text)
    text = re.sub(r" ([&*]+)(?=\w|\)|$| )", r"\1 ", text)  # Doxygen's `const policy &p`
    for theirs, ours in (("< ", "<"), (" >", ">"), ("=default", " = default"), ("& )", "&)"), ("* )", "*)")):
        text = text.replace(theirs, ours)
    return re.sub(r"  +", " ", text).strip()


def wrapped(text):
    """Declarations at most COLUMNS wide, broken after a comma."""
    out = []
    for line in text.split("\n"):
        while len(line) > COLUMNS and "," in line[20:COLUMNS]:
            at = line.rfind(",", 20, COLUMNS) + 1
            out.append(line[:at])
            line = "    " + line[at:].lstrip()
        out.append(line)
    return "\n".join(out)


def code(text):
    return f"```cpp\n{text}\n```\n\n"


def words(element):
    """The paragraphs of a description, as plain text."""
    if element is None:
        return []
    out = []
    for para in element.findall("para"):
        text = re.sub(r"\s+", " ", (para.text or "") + "".join(
            ("" if child.tag == "itemizedlist" else "".join(child.itertext())) + (child.tail or "") for child in para)).strip()
        if text:
            out.append(text)
        for item in para.findall("itemizedlist/listitem"):
            out.append("- " + re.sub(r"\s+", " ", "".join(item.itertext())).strip())
    return out


def description(element):
    said = words(element.find("briefdescription")) + words(element.find("detaileddescription"))
    text, last = "", ""
    for line in said:
        item = line.startswith("- ")
        text += "" if not last or (item and last.startswith("- ")) else "\n"
        text += ("- " + escaped(line[2:]) if item else escaped(line)) + "\n"
        last = line
    return text + ("\n" if text else "")


def escaped(text):
    """Markdown that shows the text; backticks stay."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if i % 2 else re.sub(r"([\\*_{}\[\]>#])", r"\\\1", p).replace("<", "&lt;") for i, p in enumerate(parts))
