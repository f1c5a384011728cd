"""Which module imports which, read from the source of the library and of the app."""

import ast

from tests.docs.pages import ROOT

PARTS = ("fedpara", "server", "client", "simulations")


def modules():
    """Every module by name, with its file."""
    found = {}
    for part in PARTS:
        for file in sorted((ROOT / part).rglob("*.py")):
            found[".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = file
    return found


def imported(name, known):
    """The modules among `known` that a module imports, in functions too; not what is for type checkers alone.

    What it has loaded through `fedpara.app.load("…")`, the door to the app, is among them.
    """
    file = known[name]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "load" and node.args:
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return found & known.keys()
