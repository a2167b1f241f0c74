"""What the documents say is run: every ```python block, every example of a docstring, every link."""

import ast
import doctest
import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import textwrap

import keras
import pytest

import tf_sparsity as ts
import tflite_export

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
             *sorted((ROOT / "docs").glob("*.md"))]
USER_DOCUMENTS = [ROOT / name for name in ("README.md", "docs/methods.md", "docs/hosts.md",
                                           "docs/saving.md")]
ON_JAX = 'os.environ["KERAS_BACKEND"] = "jax"'  # a block that says this has a process of its own

every_document = pytest.mark.parametrize("path", DOCUMENTS,
                                         ids=lambda p: str(p.relative_to(ROOT)))


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text, language):
    """[(line number of the first line of code, code)] of the fenced blocks in `text`."""
    found = re.finditer(rf"^([ \t]*)```{language}\n(.*?)^\1```[ \t]*$", text,
                        re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, m.start(2)) + 1, textwrap.dedent(m.group(2))) for m in found]


def run(code, line, source, names):
    """Runs a block so that a traceback shows its line in the document."""
    exec(compile("\n" * (line - 1) + code, str(source), "exec"), names)


@pytest.fixture(autouse=True)
def restored(tmp_path, monkeypatch):
    """Documents write files, and may set the dtype policy: neither outlives the test."""
    monkeypatch.chdir(tmp_path)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


# ---- the documents


@every_document
def test_python_blocks_run(path, capsys):
    """In order, in one namespace and one folder, as a reader would paste them; and a ```text
    block that shows a report is what they print."""
    keras.backend.clear_session()  # layers are named as in a new process
    names = {"__name__": "__main__"}
    for line, code in blocks(read(path), "python"):
        if ON_JAX in code:
            env = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                  timeout=300, env={**env, "PYTHONPATH": str(ROOT)})
            assert done.returncode == 0, f"{path.name}:{line}\n{done.stderr}"
        else:
            run(code, line, path, names)
    printed = capsys.readouterr().out
    for line, shown in blocks(read(path), "text"):
        assert not shown.startswith("Sparsity ") or shown in printed, f"{path.name}:{line}"


@every_document
def test_blocks_have_a_language(path):
    """A block without one would be neither run nor seen to be left out."""
    fences = re.findall(r"^[ \t]*```(.*)$", read(path), re.MULTILINE)
    assert len(fences) % 2 == 0 and set(fences[1::2]) <= {""}, "an unclosed block"
    assert set(fences[::2]) <= {"python", "bash", "text", "kotlin", "cpp", ""}, fences[::2]


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@every_document
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", read(path), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", read(file), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name} links to {target}"


@every_document
def test_shell_lines_name_what_is_there(path):
    makefile = read(ROOT / "Makefile")
    extras = extras_of_setup()
    for _, code in blocks(read(path), "bash"):
        for line in code.splitlines():
            line = line.partition("#")[0].rstrip()
            for target in re.findall(r"^make(?: \w+=\S+)* ([\w-]+)", line):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
            for names in re.findall(r"\.\[([\w,]+)\]", line):
                assert set(names.split(",")) <= extras, line
            for module in re.findall(r"python3? -m ([\w.]+)", line):
                assert importlib.util.find_spec(module) is not None, line
            if "-m pytest -n" in line:  # what `make test` runs
                line = line.replace(".venv/bin/python", "$(RUN)").replace("-n 2", "-n $(WORKERS)")
                assert line in makefile, line


def extras_of_setup():
    tree = ast.parse(read(ROOT / "setup.py"))
    keyword, = (k for node in ast.walk(tree) if isinstance(node, ast.Call)
                for k in node.keywords if k.arg == "extras_require")
    return {ast.literal_eval(key) for key in keyword.value.keys}


def test_readme_table_of_methods():
    """`Name` | paper | file | formula: the file exists and defines the class; none is missing."""
    rows = re.findall(r"^\| `(\w+)` \|.*?\| \[?`(tf_sparsity/[\w/]+\.py)`",
                      read(ROOT / "README.md"), re.MULTILINE)
    methods = {name for name in ts.__all__ if inspect.isclass(getattr(ts, name))
               and issubclass(getattr(ts, name), ts.Method)} - {"Method", "MaskMethod"}
    assert {name for name, _ in rows} == methods
    for name, file in rows:
        assert pathlib.Path(inspect.getsourcefile(getattr(ts, name))) == ROOT / file


def test_files_named_in_the_documents_exist():
    """`tf_sparsity/convert.py`, `tests/test_update.py`, ... wherever a document names one."""
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:tf_sparsity|tflite_export|recipes|tests|docs)/[\w/.-]+)`",
                               read(path)):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_import_table_is_that_of_the_test():
    """docs/design.md shows ALLOWED of tests/test_imports.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        allowed = importlib.import_module("test_imports").ALLOWED
    finally:
        sys.path.pop(0)
    text = read(ROOT / "docs/design.md")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    assert {module: set(re.findall(r"`(\w+)`", cell)) for module, cell in rows.items()} == allowed


def test_the_changelog_has_the_version():
    assert f"## {ts.__version__}" in read(ROOT / "CHANGELOG.md")
    assert f'version="{ts.__version__}"' in read(ROOT / "setup.py")


def test_every_public_name_is_explained():
    text = "\n".join(read(path) for path in USER_DOCUMENTS)
    for name in ts.__all__:
        assert re.search(rf"\bts\.{name}\b|`{name}\b", text), name
    for name in ts.callbacks.__all__:
        assert re.search(rf"\b{name}\b", text), name


# ---- docstrings

# One example serves all layers, for they differ in the Keras layer that they extend only: that
# of SparseLayer and docs/hosts.md. Records are shown by the example of what returns them.
LAYERS = set(ts.layers.__all__) - {"SparseLayer"}
RECORDS = {"SparsityReport": "report", "Exported": "convert", "Report": "convert",
           "LayerReport": "convert", "Ticket": "TicketSearch"}


def public():
    """{name: object} of every public class and function."""
    found = {}
    for module in (ts, ts.callbacks, ts.layers, tflite_export):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[name] = thing
    return found


def docstrings():
    """[(name, docstring)] of everything in both packages."""
    found = {}
    for package in (ts, tflite_export):
        modules = [package] + [importlib.import_module(m.name)
                               for m in pkgutil.walk_packages(package.__path__,
                                                              package.__name__ + ".")
                               if not m.name.endswith("__main__")]
        for module in modules:
            found[module.__name__] = module.__doc__ or ""
            for thing in vars(module).values():
                if getattr(thing, "__module__", None) != module.__name__:
                    continue
                if inspect.isclass(thing) or inspect.isfunction(thing):
                    name = f"{module.__name__}.{thing.__qualname__}"
                    found[name] = inspect.getdoc(thing) or ""
                if inspect.isclass(thing):
                    for key, member in vars(thing).items():
                        member = getattr(member, "__func__", member)
                        if inspect.isfunction(member) or isinstance(member, property):
                            found[f"{name}.{key}"] = inspect.getdoc(member) or ""
    return found


DOCSTRINGS = docstrings()


def has_example(docstring):
    return "```python" in docstring or ">>>" in docstring


@pytest.mark.parametrize("name", [n for n, doc in DOCSTRINGS.items() if "```python" in doc])
def test_examples_of_docstrings_run(name):
    for line, code in blocks(DOCSTRINGS[name], "python"):
        run(code, line, name, {"__name__": "__main__"})


@pytest.mark.parametrize("name", [n for n, doc in DOCSTRINGS.items() if ">>>" in doc])
def test_doctests_pass(name):
    assert "+SKIP" not in DOCSTRINGS[name]
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:i]))
            break
        except ModuleNotFoundError:
            continue
    test = doctest.DocTestParser().get_doctest(DOCSTRINGS[name], dict(vars(module)), name, None, 0)
    failures = []
    doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("name", sorted(public()))
def test_every_public_name_has_a_docstring_with_an_example(name):
    docstring = inspect.getdoc(public()[name])
    own = vars(public()[name]).get("__doc__") if inspect.isclass(public()[name]) else docstring
    assert own, f"{name} has no docstring of its own"
    if name in RECORDS:
        assert has_example(inspect.getdoc(public()[RECORDS[name]]))
    elif name not in LAYERS:
        assert has_example(docstring), f"the docstring of {name} shows no example"
