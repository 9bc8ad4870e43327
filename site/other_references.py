"""The references of C (the sections of lagkv.h) and of Python (docstrings of the installed package)."""

import ast
import inspect
import re

import cpp_reference


def pages(root):
    return {"reference/c.md": c(root), "reference/python.md": python(root)}


def c(root):
    """lagkv.h as it is, in sections."""
    text = (root / "include" / "lagkv.h").read_text()
    parts = re.split(r"^/\* -{4} (.+?) -{4,} \*/$", text, flags=re.M)
    opening = re.match(r"/\*(.*?)\*/", parts[0], re.S)[1]
    lines = [re.sub(r"^ \* ?", "", line) for line in opening.removeprefix(" Part of lagkv (MIT). ").splitlines()]
    out = "# lagkv.h\n\n" + cpp_reference.escaped("\n".join(lines).strip()) + "\n\n[C and Rust](../c.md) has a first program.\n\n"
    for title, body in zip(parts[1::2], parts[2::2]):
        body = re.split(r"^#ifdef __cplusplus", body, flags=re.M)[0].strip().replace("LAGKV_API ", "")
        out += f"## {title[0].upper()}{title[1:]}\n\n```c\n{body}\n```\n\n"
    return out


def python(root):
    import lagkv
    out = (f"# Python\n\n```python\nimport lagkv\n```\n\n{docstring(lagkv)}\n\n[Python](../python.md) has examples and the "
           "arrays that are accepted.\n\n## Functions\n\n")
    objects = [(name, getattr(lagkv, name)) for name in lagkv.__all__]
    for name, f in objects:
        if inspect.isfunction(f):
            out += f"### {name}\n\n```python\n{signature(name, str(inspect.signature(f)))}\n```\n\n{docstring(f)}\n\n"
    out += "## Classes\n\n"
    for name, cls in objects:
        if inspect.isclass(cls):
            out += f"### {name}\n\n{docstring(cls)}\n\n{members(cls)}"
    for module, title in (("transformers", "lagkv.transformers"), ("kvpress", "lagkv.kvpress")):
        out += f"## {title}\n\n" + from_source(root / "python" / "lagkv" / f"{module}.py")
    return out


def docstring(thing):
    return prose(inspect.getdoc(thing) or "")


def prose(text):
    """Indented blocks of a docstring are code."""
    out, block = [], []

    def close():
        while block and not block[-1].strip():
            block.pop()
        if block:
            out.append("```python\n" + inspect.cleandoc("\n" + "\n".join(block)) + "\n```")
            block.clear()

    for line in text.splitlines():
        if line.startswith("    ") or (block and not line.strip()):
            block.append(line)
        else:
            close()
            out.append(cpp_reference.escaped(line))
    close()
    return "\n".join(("\n" + o + "\n" if o.startswith("```") else o) for o in out)


def signature(name, arguments):
    """One argument a line where it is long; defaults and types as they are written."""
    text = name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", arguments.replace("lagkv._core.", "")).replace(" -> None", "")
    if len(text) <= cpp_reference.COLUMNS:
        return text
    return cpp_reference.wrapped(text)


def members(cls):
    """Of a compiled class: the first lines of a docstring are its signature."""
    rows = []
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__init__":
            continue
        doc = inspect.getdoc(member) or ""
        if callable(member) or isinstance(member, staticmethod):
            first, _, rest = doc.partition("\n")
            first = first if "(" in first else f"{name}(...)"
            first = first.replace("lagkv._core.", "").replace("__init__", cls.__name__)
            first = first.replace("(self, ", "(").replace("(self)", "()")
            rows.append((re.sub(r" -> None$", "", first), rest))
        else:
            rows.append((name, doc))
    text = "".join(f"`{first}`\n{': ' + cpp_reference.escaped(' '.join(rest.split())) if rest.strip() else ''}\n\n"
                   for first, rest in sorted(rows, key=lambda r: "(" in r[0]))
    return re.sub(r"`\n: ", "`: ", text).replace("`\n\n\n", "`\n\n")


def from_source(path):
    """A module that needs more than this environment has: its public classes and functions by its text."""
    tree = ast.parse(path.read_text())
    public = next(ast.literal_eval(n.value) for n in tree.body
                  if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__")
    text = prose(ast.get_docstring(tree) or "") + "\n\n"
    for node in tree.body:
        if getattr(node, "name", None) not in public:
            continue
        doc = prose(ast.get_docstring(node) or "")
        if isinstance(node, ast.ClassDef):
            functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            start = next(n for n in functions if n.name == "__init__")
            text += f"### {node.name}\n\n```python\n{call(node.name, start)}\n```\n\n{doc}\n\n"
            for n in functions:
                if not n.name.startswith("_"):
                    text += f"```python\n{call(node.name + '.' + n.name, n)}\n```\n\n{prose(ast.get_docstring(n) or '')}\n\n"
        else:
            text += f"### {node.name}\n\n```python\n{call(node.name, node)}\n```\n\n{doc}\n\n"
    return text


def call(name, node):
    arguments = re.sub(r"^self(, )?", "", ast.unparse(node.args))
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None and ast.unparse(node.returns) != "None" else ""
    return signature(name, f"({arguments}){result}")
