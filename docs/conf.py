"""Settings of Sphinx, the rules for docstrings, and the table of every kind of dropout."""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

# A checkout's own files come first, whatever is installed.
sys.path.insert(0, str(Path(__file__).parent.parent))
import fastdrop

project = "fastdrop"
author = "The fastdrop developers"
copyright = f"2026, {author}"
version = release = fastdrop.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"fastdrop {release}"
html_theme_options = {"navigation_with_keys": True}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# In docstrings, `name` is a link where it names something on the site, and code where it does not.
default_role = "py:obj"
nitpicky = True
# Types in docstrings are prose: "int or None, optional".
nitpick_ignore_regex = [(r"py:(obj|class|exc)", r"(?s).*")]
autodoc_typehints = "none"
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
napoleon_use_rtype = False
# Attributes are described where they are listed, and again by their own docstrings.
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
    "Reference",
]

MODULES = {
    "NumPy": ["fastdrop"],
    "Keras": ["fastdrop_keras"],
    "PyTorch": ["fastdrop_torch", "fastdrop_torch.functional"],
    "JAX": ["fastdrop_jax", "fastdrop_jax.nnx", "fastdrop_jax.equinox"],
}
RANDOM = {"seed", "key", "generator", "rngs"}


def as_rst(app, what, name, obj, options, lines):
    """Translate the Markdown links of a docstring, and give its footnotes names of their own."""
    text = "\n".join(lines)
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", text)
    text = re.sub(r"(?<![\\\w`])\*\*kwargs", r"\\*\\*kwargs", text)
    label = re.sub(r"\W", "-", name)
    lines[:] = re.sub(r"\[(\d)\](_| )", rf"[#{label}-\1]\2", text).split("\n")


def is_random(value):
    """Whether a public name is a layer, or a function that draws or that cites a paper."""
    if inspect.isclass(value):
        return any(base.__name__ in ("Layer", "Module") for base in value.__mro__)
    if not callable(value):
        return False
    return bool(RANDOM & set(inspect.signature(value).parameters)) or bool(papers(value))


def papers(value):
    """The papers that a docstring cites, in Markdown."""
    doc = inspect.getdoc(value)
    _, _, numpy_style = doc.partition("References\n----------\n")
    cited = re.findall(r"^\.\. \[\d\] (.*?)$(?=\n\.\.|\n\n|\Z)", numpy_style, re.M | re.S)
    _, _, keras_style = doc.partition("Reference:\n")
    cited += re.findall(r"^ *- (.*)$", keras_style.partition("Example")[0], re.M)
    return "; ".join(" ".join(paper.split()).rstrip(".") for paper in cited)


def summary(value):
    """The first sentence of a docstring, without Cython's line of the signature."""
    doc = re.sub(r"\A\w+\(.*\)\n+", "", inspect.getdoc(value))
    return " ".join(re.split(r"\n\n|(?<=\.)\s", doc)[0].split())


class EveryKind(SphinxDirective):
    """Lists every layer and every random function of the packages, with its papers."""

    def run(self):
        lines = []
        for framework, modules in MODULES.items():
            lines += [f"## {framework}", "", "| name | what it does | paper |", "|---|---|---|"]
            for module in map(import_module, modules):
                for name in module.__all__:
                    value = getattr(module, name)
                    if is_random(value) and not name.endswith("_"):
                        link = f"{{py:obj}}`{module.__name__}.{name}`"
                        lines.append(f"| {link} | {summary(value)} | {papers(value)} |")
            lines.append("")
        return self.parse_text_to_nodes(
            StringList(lines, source="docstrings"), allow_section_headings=True
        )


def setup(app):
    app.connect("autodoc-process-docstring", as_rst)
    app.add_directive("every-kind", EveryKind)
