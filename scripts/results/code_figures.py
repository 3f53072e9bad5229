"""How long, how wide and how tangled a package's code is: a table with a column for each checkout.

    python -m scripts.results.code_figures ROOT [ROOT2 ...] [--package wsi_pipeline] [--names]

Lines of a function run from `def` to its last one, docstring and nested functions among them; nested functions
count for themselves too. Parameters are all but self and cls, *args and **kwargs one each. A room is a folder or
file directly under the package. An arrow is a room that imports another when it is imported itself; one points
back up where the rooms cannot all stand in one order, counted in the order that leaves the fewest. Imports for types
alone (TYPE_CHECKING) and those inside functions are counted apart.
"""

import argparse
import ast
import re
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LONG_LINES = 60
MANY_PARAMETERS = 7
Graph = dict[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Figures:
    """What was counted in one package."""

    modules: frozenset[str] = frozenset()
    lines: int = 0
    code_lines: int = 0
    function_lines: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    any_count: int = 0
    type_ignores: int = 0
    noqas: int = 0
    # Module to modules: what is imported when it is, for types alone, and inside functions.
    imports: Graph = field(default_factory=lambda: defaultdict(set))
    type_imports: Graph = field(default_factory=lambda: defaultdict(set))
    late_imports: Graph = field(default_factory=lambda: defaultdict(set))


def main() -> int:
    """Print the table, and with --names what is long; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT", help="checkouts")
    parser.add_argument("--package", default="wsi_pipeline", help="default: %(default)s")
    parser.add_argument(
        "--names", action="store_true", help="name the longest functions, the back arrows and circles"
    )
    args = parser.parse_args()
    figures = [measure(root / args.package) for root in args.roots]
    columns = [rows_of(each) for each in figures]
    print(f"| {args.package} | {' | '.join(str(root) for root in args.roots)} |")
    print(f"| --- |{' ---: |' * len(columns)}")
    for row in columns[0]:
        print(f"| {row} | {' | '.join(column[row] for column in columns)} |")
    for root, each in zip(args.roots, figures, strict=True):
        if args.names:
            print(f"\n{root}")
            print("\n".join(names_of(each)))
    return 0


def measure(package: Path) -> Figures:
    """The figures of all Python files under the package's folder."""
    files = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    if not files:
        raise SystemExit(f"{package}: found no Python files")
    figures = Figures(frozenset(files))
    for module, path in files.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, str(path))
        figures.lines += len(text.splitlines())
        figures.any_count += count_any(tree)
        count_comments(path, figures)
        for name, function in functions_of(tree, module):
            assert function.end_lineno is not None
            figures.function_lines[name] = function.end_lineno - function.lineno + 1
            figures.parameters[name] = parameter_count(function)
        for target, place in imports_of(tree, module, path, set(files)):
            graph = {"load": figures.imports, "types": figures.type_imports, "late": figures.late_imports}[
                place
            ]
            if target != module:
                graph[module].add(target)
    return figures


def module_name(path: Path, package: Path) -> str:
    """Dotted, the package's own name first: wsi_pipeline.cli.batch."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions_of(tree: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    """Every function and method, nested ones too, with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}.{node.name}" if named else prefix  # type: ignore[attr-defined]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions_of(node, name)


def parameter_count(function: Function) -> int:
    """Parameters, without self and cls."""
    given = function.args
    names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + sum(
        star is not None for star in (given.vararg, given.kwarg)
    )


def count_any(tree: ast.AST) -> int:
    """How often `Any` stands in annotations and in type aliases."""
    annotations: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            annotations.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            annotations.append(node.annotation)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            annotations.append(node.value)  # an alias: Array = np.ndarray[Any, Any]
    return sum(map(any_in, annotations))


def any_in(annotation: ast.AST) -> int:
    """How often `Any` stands in one annotation, quoted parts too."""
    count = 0
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            count += node.id == "Any"
        elif isinstance(node, ast.Attribute):
            count += node.attr == "Any"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            count += len(re.findall(r"\bAny\b", node.value))
    return count


def count_comments(path: Path, figures: Figures) -> None:
    """Add the file's `type: ignore` and `noqa` comments, and its lines that hold code."""
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    no_code |= {tokenize.ENCODING, tokenize.ENDMARKER}
    coded: set[int] = set()
    begins = True
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                figures.type_ignores += bool(re.search(r"type:\s*ignore", token.string))
                figures.noqas += bool(re.search(r"#\s*noqa", token.string))
            is_docstring = begins and token.type == tokenize.STRING
            if token.type not in no_code and not is_docstring:
                coded.update(range(token.start[0], token.end[0] + 1))
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                begins = token.type in no_code
    figures.code_lines += len(coded)


def imports_of(tree: ast.AST, module: str, path: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    """Modules of ours that a file imports, and where: "load", "types" or "late" (in a function)."""

    def walk(node: ast.AST, place: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in targets_of(child, module, path, known):
                    yield target, place
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), "types")
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), place)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, "types" if place == "types" else "late")
            else:
                yield from walk(child, place)

    yield from walk(tree, "load")


def targets_of(node: ast.Import | ast.ImportFrom, module: str, path: Path, known: set[str]) -> set[str]:
    """Our modules that one import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & known
    base = node.module or ""
    if node.level:
        parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        parts = parts[: len(parts) - node.level + 1]
        base = ".".join([*parts, *([node.module] if node.module else [])])
    if base not in known:
        return set()
    # `from package import module` names the module; `from module import name` the module before it.
    return {inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names}


def room_of(module: str) -> str:
    """The folder or file directly under the package that a module stands in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def rooms_graph(imports: Mapping[str, set[str]]) -> Graph:
    """Rooms to rooms; the package's own __init__ (its version and public face) is no room."""
    graph: Graph = defaultdict(set)
    for module, targets in imports.items():
        for target in targets:
            one, other = room_of(module), room_of(target)
            if one != other and "__init__" not in (one, other):
                graph[one].add(other)
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of nodes that all reach each other, larger than one (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def back_arrows(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Arrows that point up, in an order of nodes found greedily so that few do (Eades, Lin and Smyth)."""
    nodes = {node for node in graph} | {target for targets in graph.values() for target in targets}
    left: list[str] = []
    right: list[str] = []
    rest = sorted(nodes)
    while rest:
        inside = set(rest)
        ins = {n: sum(n in graph.get(m, ()) for m in inside) for n in rest}
        outs = {n: len(graph.get(n, set()) & inside) for n in rest}
        if sinks := [n for n in rest if not outs[n]]:
            right, gone = [*sinks, *right], set(sinks)
        else:
            first = max(rest, key=lambda n: (not ins[n], outs[n] - ins[n]))
            left, gone = [*left, first], {first}
        rest = [n for n in rest if n not in gone]
    place = {node: i for i, node in enumerate([*left, *right])}
    return sorted((one, other) for one in graph for other in graph[one] if place[one] > place[other])


def rows_of(figures: Figures) -> dict[str, str]:
    """The table's rows, name to value."""
    lengths, widths = list(figures.function_lines.values()), list(figures.parameters.values())
    graph = rooms_graph(figures.imports)
    rooms = {room_of(module) for module in figures.modules} - {"__init__"}
    with_types = merged(figures.imports, figures.type_imports)
    everything = merged(with_types, figures.late_imports)
    return {
        "files": f"{len(figures.modules):,}",
        "lines": f"{figures.lines:,}",
        "lines of code (no blanks, comments, docstrings)": f"{figures.code_lines:,}",
        "functions": f"{len(lengths):,}",
        "function length, median": f"{statistics.median(lengths):g}",
        "function length, nine in ten at most": f"{nine_in_ten(lengths)}",
        "function length, longest": f"{max(lengths)}",
        f"functions above {LONG_LINES} lines": f"{sum(n > LONG_LINES for n in lengths)}",
        "parameters, median": f"{statistics.median(widths):g}",
        "parameters, nine in ten at most": f"{nine_in_ten(widths)}",
        "parameters, most": f"{max(widths)}",
        f"functions above {MANY_PARAMETERS} parameters": f"{sum(n > MANY_PARAMETERS for n in widths)}",
        "`Any` in annotations": f"{figures.any_count}",
        "`# type: ignore`": f"{figures.type_ignores}",
        "`# noqa`": f"{figures.noqas}",
        "rooms (folders and files under the package)": f"{len(rooms)}",
        "arrows between rooms": f"{arrow_count(graph)}",
        "arrows back up": f"{len(back_arrows(graph))}",
        "circles of rooms": f"{len(circles(graph))}",
        "arrows between modules": f"{arrow_count(figures.imports)}",
        "circles of modules": f"{len(circles(figures.imports))}",
        "with imports for types: arrows between rooms, back up, circles of rooms, of modules": tangle(
            with_types
        ),
        "and with those in functions": tangle(everything),
    }


def tangle(imports: Mapping[str, set[str]]) -> str:
    """Arrows between rooms, those back up, circles of rooms and of modules."""
    graph = rooms_graph(imports)
    counts = arrow_count(graph), len(back_arrows(graph)), len(circles(graph)), len(circles(imports))
    return ", ".join(map(str, counts))


def names_of(figures: Figures) -> list[str]:
    """What is long, wide, back up or in circles, by name."""
    lines = []
    for what, values, limit in (
        ("lines", figures.function_lines, LONG_LINES),
        ("parameters", figures.parameters, MANY_PARAMETERS),
    ):
        above = sorted(((n, name) for name, n in values.items() if n > limit), reverse=True)
        lines.append(f"functions above {limit} {what}: {len(above)}")
        lines += [f"- {n} {name}" for n, name in above]
    with_types = merged(figures.imports, figures.type_imports)
    everything = merged(with_types, figures.late_imports)
    for what, imports in (("on load", figures.imports), ("with types", with_types), ("with all", everything)):
        lines.append(f"imports {what}")
        lines += [f"- back up: {one} -> {other}" for one, other in back_arrows(rooms_graph(imports))]
        lines += [f"- circle of rooms: {', '.join(group)}" for group in circles(rooms_graph(imports))]
        lines += [f"- circle of modules: {', '.join(group)}" for group in circles(imports)]
    return lines


def merged(*graphs: Mapping[str, set[str]]) -> Graph:
    """All arrows of all graphs."""
    whole: Graph = defaultdict(set)
    for graph in graphs:
        for node, targets in graph.items():
            whole[node] |= targets
    return whole


def arrow_count(graph: Mapping[str, set[str]]) -> int:
    """How many arrows a graph has."""
    return sum(len(targets) for targets in graph.values())


def nine_in_ten(values: list[int]) -> int:
    """The smallest value that nine in ten do not exceed."""
    return sorted(values)[-(-len(values) * 9 // 10) - 1]


if __name__ == "__main__":
    sys.exit(main())
