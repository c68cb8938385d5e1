"""Trees of source code: a document is a file, with the language it is written in."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.sources.base import Part, Source, decode, read_whole

LANGUAGES = {
    "ada": ".adb .ads",
    "assembly": ".asm .s",
    "awk": ".awk",
    "c": ".c .h",
    "c#": ".cs",
    "c++": ".cc .cpp .cxx .hh .hpp .hxx",
    "clojure": ".clj .cljs",
    "cmake": ".cmake cmakelists.txt",
    "css": ".css .scss .less",
    "cuda": ".cu .cuh",
    "dart": ".dart",
    "dockerfile": ".dockerfile dockerfile",
    "elixir": ".ex .exs",
    "erlang": ".erl .hrl",
    "fortran": ".f .f90 .f95 .f03",
    "f#": ".fs .fsx",
    "go": ".go",
    "graphql": ".graphql",
    "haskell": ".hs",
    "html": ".html .htm",
    "java": ".java",
    "javascript": ".js .jsx .mjs .cjs",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "latex": ".tex",
    "lisp": ".lisp .el",
    "lua": ".lua",
    "makefile": ".mk makefile gnumakefile",
    "markdown": ".md .markdown",
    "matlab": ".m",
    "nim": ".nim",
    "nix": ".nix",
    "objective-c": ".mm",
    "ocaml": ".ml .mli",
    "pascal": ".pas",
    "perl": ".pl .pm",
    "php": ".php",
    "powershell": ".ps1",
    "prolog": ".pro",
    "protobuf": ".proto",
    "python": ".py .pyi .pyx",
    "r": ".r",
    "restructuredtext": ".rst",
    "ruby": ".rb gemfile rakefile",
    "rust": ".rs",
    "scala": ".scala .sc",
    "scheme": ".scm .rkt",
    "shell": ".sh .bash .zsh",
    "solidity": ".sol",
    "sql": ".sql",
    "swift": ".swift",
    "tcl": ".tcl",
    "terraform": ".tf",
    "toml": ".toml",
    "typescript": ".ts .tsx",
    "verilog": ".v .sv",
    "vhdl": ".vhd .vhdl",
    "vue": ".vue",
    "xml": ".xml .xsd",
    "yaml": ".yaml .yml",
    "zig": ".zig",
}
_BY_ENDING = {ending: language for language, endings in LANGUAGES.items() for ending in endings.split()}
_GENERATED = {"node_modules", "__pycache__", "site-packages", "vendor", "build", "dist", "target"}


class Code(Source):
    """Source code below directories; hidden, vendored and built directories are passed over."""

    kind: Literal["code"] = Field("code", description="What the files are.")
    languages: list[str] | None = Field(
        None, description="Languages to take, e.g. [python, c++]; by default all that are known."
    )
    max_document_bytes: int = Field(
        1 << 20, ge=1, description="Files of more bytes (often data or generated) are left out."
    )

    def takes(self, path: Path) -> bool:
        """Whether the file is code in a language that is wanted."""
        if any(part.startswith(".") or part in _GENERATED for part in path.parts):
            return False
        language = language_of(path.name)
        return language is not None and (self.languages is None or language in self.languages)

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the file, unless it is empty or not text."""
        file = part.file
        data = read_whole(file.path, self.max_document_bytes, counters)
        if data is None or not data.strip():
            return
        if b"\0" in data[:8192]:
            counters["not_text"] += 1
            return
        metadata = {"path": file.name, "programming_language": language_of(Path(file.name).name)}
        yield self.document(file, None, decode(data, counters), metadata)


def language_of(name: str) -> str | None:
    """The language of a file by its name, None where it is not known."""
    name = name.lower()
    return _BY_ENDING.get(name) or _BY_ENDING.get(Path(name).suffix)
