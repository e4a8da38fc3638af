"""Generate each `_sync` folder from the `_async` folder beside it, by text rules that are verified.

Run `python -m asyncsession_kit._tools.unasync` to write the twins, with `--check` to compare only.
This file imports nothing of the package: while a missing twin keeps the package from importing,
`python asyncsession_kit/_tools/unasync.py` does the same.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = "# Generated from _async/{} by asyncsession_kit._tools.unasync; do not edit.\n"
PACKAGE_NAMES = ("asyncsession_kit", "asyncsession-kit")
DRIVER_NAMES = ("asyncmy", "asyncpg", "psycopg_async")


class UnasyncError(Exception):
    """Hold every problem of a run as `args`, one line each; nothing was written."""

    def __str__(self) -> str:
        return "\n".join(self.args)


@dataclass(frozen=True)
class Rule:
    """Substitute what `pattern` finds in a name; a name left empty goes with the space behind."""

    name: str
    pattern: str
    replacement: str


RULES = (
    Rule("async def|with|for", r"^async$", ""),
    Rule("await", r"^await$", ""),
    Rule("__aenter__", r"^__a(enter|exit|iter|next)__$", r"__\1__"),
    Rule("async_x", r"(?<![A-Za-z0-9])async_(?=[A-Za-z])", ""),
    Rule("AsyncX", r"Async(?=[A-Z])", ""),
)


@dataclass(frozen=True)
class Tree:
    """A folder that holds `_async` and `_sync`, and the names that may say async in its text."""

    folder: str
    exempt: tuple[str, ...] = PACKAGE_NAMES


TREES = (Tree("asyncsession_kit"), Tree("tests", PACKAGE_NAMES + DRIVER_NAMES))


def rename(word: str, rules: Sequence[Rule] = RULES) -> tuple[str, set[str]]:
    """Apply the rules in order to one name; return the new name and the rules that changed it."""
    used = set()
    for rule in rules:
        changed = re.sub(rule.pattern, rule.replacement, word)
        if changed != word:
            used.add(rule.name)
        word = changed
    return word, used


def convert(source: str, rules: Sequence[Rule] = RULES) -> tuple[str, set[str]]:
    """Rename the names of a source; strings, comments and the number of lines stay as they are."""
    lines, used = list(io.StringIO(source)), set()
    for token in reversed(_tokens(source, tokenize.NAME)):
        word, applied = rename(token.string, rules)
        used |= applied
        row, column = token.start
        tail = lines[row - 1][token.end[1] :]
        lines[row - 1] = lines[row - 1][:column] + word + (tail if word else tail.lstrip(" "))
    return "".join(lines), used


def unwrap(text: str) -> str:
    """Drop the parentheses that only `await` had needed: `(f()).x` becomes `f().x`."""
    data = text.encode()
    for start, end in sorted(_wrappings(data), reverse=True):
        data = data[:start] + data[end:]
    return data.decode()


def twin(source: str, where: str, tree: Tree, rules: Sequence[Rule]) -> tuple[str, set[str]]:
    """Convert one source, unformatted; return it and the rules used, or raise `UnasyncError`."""
    _compile(source, where, "the source")
    _refuse(_text_problems(source, where, tree, rules))
    text, used = convert(source, rules)
    _refuse(_name_problems(text, where, tree))
    _compile(text, where, "the result")
    return unwrap(text), used


def render(root: Path, rules: Sequence[Rule] = RULES) -> dict[str, bytes]:
    """Return the content of every twin by its path below `root`.

    Raise `UnasyncError` with all problems; a rule that no source used is one, and so is a root
    without any source.
    """
    texts: dict[str, str] = {}
    problems: list[str] = []
    used: set[str] = set()
    for tree, path in _sources(root):
        try:
            text, applied = _load(root, tree, path, rules)
        except UnasyncError as error:
            problems += error.args
        else:
            texts[_target(tree, path)] = text
            used |= applied
    _refuse(problems or _set_problems(root, texts, used, rules))
    return _finish(root, texts)


def differences(root: Path, twins: Mapping[str, bytes]) -> dict[str, str]:
    """Tell by path what is missing, stale (any byte differs) or an orphan (without a source)."""
    present = _present(root)
    kinds = {
        **dict.fromkeys(present.keys() - twins.keys(), "orphan"),
        **dict.fromkeys(twins.keys() - present.keys(), "missing"),
        **{path: "stale" for path in present if twins.get(path, present[path]) != present[path]},
    }
    return dict(sorted(kinds.items()))


def write(root: Path, twins: Mapping[str, bytes]) -> dict[str, str]:
    """Bring the files below `root` in line with the twins; return what differed before.

    A file that did not differ is not touched.
    """
    found = differences(root, twins)
    for path, kind in found.items():
        file = root / path
        if kind == "orphan":
            file.unlink()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(twins[path])
    return found


def main(arguments: Sequence[str] | None = None, rules: Sequence[Rule] = RULES) -> int:
    """Run the command line; return 0, or 1 when a source is refused or a checked file differs."""
    options = _parser().parse_args(arguments)
    try:
        twins = render(options.root, rules)
    except UnasyncError as error:
        print(error, file=sys.stderr)
        return 1
    found = (differences if options.check else write)(options.root, twins)
    for path, kind in found.items():
        print(f"{kind}: {path}")
    print(f"{len(twins)} twins, {len(found)} {'differ' if options.check else 'brought up to date'}")
    return int(options.check and bool(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Generate _sync from _async.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 on a difference"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of pyproject.toml")
    return parser


def _tokens(source: str, kind: int) -> list[tokenize.TokenInfo]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token for token in tokens if token.type == kind]


def _compile(text: str, where: str, what: str) -> None:
    """Refuse text that does not compile, which finds more than parsing: a name given twice, too."""
    try:
        compile(text, where, "exec")
    except SyntaxError as error:
        raise UnasyncError(
            f"{where}:{error.lineno}: {what} does not compile: {error.msg}; write it in another way"
        ) from error


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        raise UnasyncError(*found)


def _text_problems(source: str, where: str, tree: Tree, rules: Sequence[Rule]) -> list[str]:
    """Find words in strings and comments that the twin would carry over, and be wrong about."""
    problems = []
    for kind, start, text in [*_comments(source), *_strings(source)]:
        for offset, word in _words(text, tree):
            if _says(word) or rename(word, rules)[0] != word:
                line = start + text.count("\n", 0, offset)
                problems.append(
                    (line, f"a {kind} says {word!r}; word it so that both twins read right")
                )
    return [f"{where}:{line}: {problem}" for line, problem in sorted(problems)]


def _name_problems(text: str, where: str, tree: Tree) -> Iterator[str]:
    for token in _tokens(text, tokenize.NAME):
        if any(_says(word) for _, word in _words(token.string, tree)):
            yield (
                f"{where}:{token.start[0]}: no rule converts the name {token.string!r}; rename it "
                "(async_x, x_async_y, AsyncX) or move it to a pair outside _async/"
            )


def _words(text: str, tree: Tree) -> Iterator[tuple[int, str]]:
    """Yield each word and its offset, with the exempt names blanked out."""
    exempt = "|".join(map(re.escape, tree.exempt))
    pattern = rf"(?i)(?<![a-z0-9])(?:{exempt})(?![a-z0-9])"
    blanked = re.sub(pattern, lambda match: " " * len(match[0]), text)
    for match in re.finditer(r"\w+", blanked):
        yield match.start(), match[0]


def _says(word: str) -> bool:
    return re.search("async|await", word, re.IGNORECASE) is not None


def _comments(source: str) -> Iterator[tuple[str, int, str]]:
    for token in _tokens(source, tokenize.COMMENT):
        yield "comment", token.start[0], token.string


def _strings(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield each literal as it is written, the fields of an f-string included.

    Python 3.12 made these fields tokens of their own; as text they mean the same in every version.
    """
    for node in _literals(ast.parse(source)):
        yield "string", node.lineno, ast.get_source_segment(source, node) or ""


def _literals(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr) or (
            isinstance(child, ast.Constant) and isinstance(child.value, str | bytes)
        ):
            yield child
        else:
            yield from _literals(child)


def _wrappings(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the span of each parenthesis around what a dot or an index follows."""
    starts = [0, *(match.end() for match in re.finditer(rb"\n", data))]
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.Attribute | ast.Subscript) and _is_primary(node.value):
            outer, _ = _span(starts, node)
            start, end = _span(starts, node.value)
            opening = re.compile(rb"(?<!\w)\(\s*").fullmatch(data, outer, start)
            closing = re.compile(rb"\s*\)").match(data, end)
            if opening and closing and _stands_alone(data[start:end]):
                yield from [opening.span(), closing.span()]


def _span(starts: Sequence[int], node: ast.expr) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    end = starts[node.end_lineno - 1] + node.end_col_offset
    return starts[node.lineno - 1] + node.col_offset, end


def _is_primary(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call)


def _stands_alone(expression: bytes) -> bool:
    """Tell whether all line breaks are inside brackets of its own."""
    try:
        ast.parse(expression, mode="eval")
    except SyntaxError:
        return False
    return True


def _sources(root: Path) -> Iterator[tuple[Tree, Path]]:
    for tree in TREES:
        folder = root / tree.folder / "_async"
        for path in sorted(folder.rglob("*.py")):
            yield tree, path.relative_to(folder)


def _target(tree: Tree, path: Path) -> str:
    return f"{tree.folder}/_sync/{path.as_posix()}"


def _load(root: Path, tree: Tree, path: Path, rules: Sequence[Rule]) -> tuple[str, set[str]]:
    where = f"{tree.folder}/_async/{path.as_posix()}"
    if any(_says(word) for _, word in _words(path.as_posix(), tree)):
        raise UnasyncError(f"{where}: the file keeps its name in _sync; take the async out of it")
    return twin((root / where).read_text(encoding="utf-8"), where, tree, rules)


def _set_problems(
    root: Path, texts: Mapping[str, str], used: set[str], rules: Sequence[Rule]
) -> list[str]:
    if not texts:
        return [f"{root}: no source in asyncsession_kit/_async or tests/_async; correct --root"]
    return [
        f"rule {rule.name!r}: no source uses it; take it out of RULES"
        for rule in rules
        if rule.name not in used
    ]


def _finish(root: Path, texts: Mapping[str, str]) -> dict[str, bytes]:
    """Format the texts in a temporary tree, then name their sources.

    The header comes last: above an import, sorting would take it for a comment of that import.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path, text in texts.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        _ruff(root, "check", "--select", "I", "--fix-only", folder)
        _ruff(root, "format", folder)
        return {path: _header(path) + Path(folder, path).read_bytes() for path in texts}


def _header(path: str) -> bytes:
    return HEADER.format(path.partition("/_sync/")[2]).encode()


def _ruff(root: Path, command: str, *arguments: str) -> None:
    """Run ruff with the project's settings; it takes their paths from the working directory."""
    settings = root / "pyproject.toml"
    config = ["--config", str(settings.resolve())] if settings.exists() else ["--isolated"]
    line = [sys.executable, "-m", "ruff", command, "--no-cache", "--quiet", *config, *arguments]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnasyncError(
            f"ruff {command} ended with {done.returncode}: {done.stderr.strip()}; "
            "install the version that pyproject.toml pins"
        )


def _present(root: Path) -> dict[str, bytes]:
    """Read the modules and stubs of the `_sync` folders, by path below `root`."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for tree in TREES
        for path in (root / tree.folder / "_sync").rglob("*.py*")
        if path.suffix in {".py", ".pyi"} and "__pycache__" not in path.parts
    }


if __name__ == "__main__":
    sys.exit(main())
